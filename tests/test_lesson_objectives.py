"""Lesson 08 at small size, as a reader runs it, and its parts: small faces, charts, and a collapse made on purpose."""

import math
import re

import numpy as np
import pytest
from PIL import Image
from test_lessons import fail, pictures_in, succeed

from data_tools import toy_faces
from tools import objectives
from vae_np import VAE
from vae_np.run.trainer import Settings, Trainer

SMALL = ["--epochs", "8", "--channels", "4", "8", "--latent-dim", "4"]
PIXELS = 16 * 16 * 3
PICTURES = {"plane.png", "kl_by_dimension.png", "pictures.png"}
ROW = r"^ ?(\d+) (.{24}) *(\S+) +(\S+) +(\S+) +(\S+) +(\S+) dB +(\d+) +(\S+) +(\S+) +\S+ min left$"


def rows_of(output):
    """The table's rows: {name: [beta, R, D, R + D, PSNR, active, R^2, MIG]}."""
    found = re.findall(ROW, output, re.MULTILINE)
    assert [int(number) for number, *_ in found] == list(range(1, 15))
    return {name.strip(): [math.nan if cell == "-" else float(cell) for cell in cells] for _, name, *cells in found}


def test_on_toy_faces(tmp_path):
    toy_faces.write_dataset(tmp_path / "faces", count=64, size=16, seed=0, workers=1)
    output = succeed("08_objectives.py", "--data", "faces", *SMALL, cwd=tmp_path)
    assert "derivatives differ by 4 exactly" in output
    rows = rows_of(output)
    for name, (_, rate, distortion, total, psnr, active, r_squared, _) in rows.items():
        assert total == pytest.approx(rate + distortion, abs=1.1), name
        # D is of a sampled code; PSNR, through mu, is of an error that is smaller, or hardly larger.
        assert distortion > 0.9 * PIXELS * 10 ** (-psnr / 10) * 32, name
        assert 0 <= active <= 4
        assert -3 < r_squared < 1
    betas = {name: row[0] for name, row in rows.items()}
    assert math.isnan(betas.pop("Bernoulli"))
    assert 0.1 < betas.pop("sigma calibrated") < 30
    assert list(betas.values()) == [0.25, 1, 4, 4, 32, 256, 256, 256, *[32 * PIXELS] * 4]
    assert rows["beta 4"][1:5] == pytest.approx(rows["beta 1, sigma 1/4"][1:5], rel=0.02), "one knob"
    assert rows["beta 256"][1:5] != rows["beta 256, no warm-up"][1:5] != rows["beta 256, 4 cycles"][1:5]
    assert rows["averaged error"][1:5] != rows["averaged, free bits"][1:5] != rows["averaged, 4 cycles"][1:5]
    assert output.count(" tells best, by R^2: ") == output.count(" tells least, by R^2: ") == 1
    assert pictures_in(tmp_path / "runs/08_objectives") == PICTURES


def test_without_factors(ramps, tmp_path):
    output = succeed("08_objectives.py", "--data", ramps.folder, *SMALL, cwd=tmp_path)
    assert "does not know the factors of its faces: no R^2 and no MIG" in output
    assert all(math.isnan(cell) for row in rows_of(output).values() for cell in row[6:])
    assert "tells best" not in output
    assert pictures_in(tmp_path / "runs/08_objectives") == PICTURES


@pytest.mark.parametrize(("flags", "message"), [
    (["--limit", "4", "--latent-dim", "4"], "this lesson needs 5 training images or more, and there are 4"),
    (["--channels", "4", "4", "4", "4", "4"], "image_size must be divisible by 32"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(ramps, tmp_path, flags, message):
    status, line = fail("08_objectives.py", "--data", ramps.folder, *SMALL, *flags, cwd=tmp_path)
    assert status == 1
    assert message in line


class Large:
    """A dataset of larger images than the lesson wants."""

    folder, description = "large", {}

    def __init__(self, size):
        self.image_size = size
        self.images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)

    def split(self, name, limit=None):
        return self.images[:limit]


@pytest.mark.parametrize(("size", "expected", "block"), [(128, 32, 4), (70, 35, 2), (32, 32, 1), (16, 16, 1)])
def test_small_faces_are_means_of_blocks(size, expected, block):
    large = Large(size)
    small = objectives.SmallFaces(large, {"train": 2, "test": 1})
    assert small.image_size == expected
    images = small.split("train")
    assert (images.shape, images.dtype) == ((2, expected, expected, 3), np.uint8)
    assert len(small.split("test")) == len(small.split("train", 1)) == 1
    for row, column, channel in ((0, 0, 0), (3, 7, 1), (expected - 1, 5, 2)):
        pixels = [int(large.images[1, row * block + i, column * block + j, channel])
                  for i in range(block) for j in range(block)]
        assert images[1, row, column, channel] == round(sum(pixels) / block**2)


def test_models_at_one_point_are_drawn_apart(tmp_path, monkeypatch):
    faces = np.random.default_rng(0).random((1, 8, 8, 3))
    rows = [{"name": "same", "R": 0.0, "D": 900.0, "slope": 1e5, "faces": faces, "samples": faces} for _ in range(4)]
    rows += [{"name": "far", "R": 90.0, "D": 100.0, "slope": None, "faces": faces, "samples": faces}]
    boxes = []
    monkeypatch.setattr(objectives.pictures, "save_figure", lambda path, chart: (
        chart.savefig(path), boxes.extend(inset.get_window_extent() for inset in chart.axes[0].child_axes)))
    objectives.draw_plane(tmp_path / "plane.png", rows, np.array([[0.0, 90.0], [800.0, 50.0]]), sigma=0.125)
    with Image.open(tmp_path / "plane.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_an_averaged_error_collapses_and_a_summed_one_does_not(ramps):
    rates = {}
    for name, sigma in (("summed", math.sqrt(1 / 2)), ("averaged", math.sqrt(ramps.images[0].size / 2))):
        settings = Settings(epochs=40, batch_size=8, learning_rate=0.01, likelihood="gaussian", sigma=sigma)
        trainer = Trainer(VAE(16, (4, 8), 4, seed=0), ramps, settings, threads=1)
        while trainer.epoch < settings.epochs:
            rates[name] = trainer.train_epoch()["val_kl"]
    assert rates["summed"] > 0.5
    assert rates["averaged"] < 0.05
