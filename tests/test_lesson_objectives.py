"""Lesson 08 at small size, as a reader runs it, and its parts: small faces and charts."""

import json
import math
import re

import numpy as np
import pytest
from conftest import write_dataset
from test_lessons import fail, pictures_in, succeed

from tools import objectives

SMALL = ["--epochs", "40", "--channels", "4", "8", "--latent-dim", "4"]
PIXELS = 16 * 16 * 3
ROW = r"^ ?(\d+) (.{24}) *(\S+) +(\S+) +(\S+) +(\S+) +(\S+) dB +(\d+) +(\S+) +\S+ min left$"


def give_factors(dataset):
    """Let a prepared dataset know two factors of its faces: how red they are, and one that says nothing."""
    red = dataset.images[..., 0].mean(axis=(1, 2))
    np.save(dataset.folder / "factors.npy", np.stack([red, np.arange(len(red)) % 3], axis=1).astype(np.float32))
    path = dataset.folder / "dataset.json"
    info = json.loads(path.read_text(encoding="utf-8")) | {"factor_names": ["red", "nothing"]}
    path.write_text(json.dumps(info), encoding="utf-8")


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_lesson_with_and_without_factors(tmp_path, known):
    dataset = write_dataset(tmp_path / "faces")
    if known:
        give_factors(dataset)
    output = succeed("08_objectives.py", "--data", "faces", *SMALL, cwd=tmp_path)
    assert "derivatives differ by 4 exactly" in output
    found = re.findall(ROW, output, re.MULTILINE)
    assert [int(number) for number, *_ in found] == list(range(1, 15))
    # beta, R, D, R + D, PSNR, active, R^2
    rows = {name.strip(): [math.nan if cell == "-" else float(cell) for cell in cells] for _, name, *cells in found}
    for name, (_, rate, distortion, total, psnr, active, r_squared) in rows.items():
        assert total == pytest.approx(rate + distortion, abs=1.1), name
        # D is of a sampled code; PSNR, through mu, is of an error that is smaller, or hardly larger.
        assert distortion > 0.9 * PIXELS * 10 ** (-psnr / 10) * 32, name
        assert 0 <= active <= 4
        assert r_squared < 1 if known else math.isnan(r_squared)
    betas = {name: row[0] for name, row in rows.items()}
    assert math.isnan(betas.pop("Bernoulli"))
    assert 0.1 < betas.pop("sigma calibrated") < 30
    assert list(betas.values()) == [0.25, 1, 4, 4, 32, 256, 256, 256, *[32 * PIXELS] * 4]
    assert rows["beta 4"][1:5] == pytest.approx(rows["beta 1, sigma 1/4"][1:5], rel=0.02), "one knob"
    assert rows["beta 256"][1:5] != rows["beta 256, no warm-up"][1:5] != rows["beta 256, 4 cycles"][1:5]
    assert 1.5 * rows["averaged error"][1] < rows["beta 32, summed error"][1], "in few steps, one begins to collapse"
    assert rows["averaged error"][1:5] != rows["averaged, free bits"][1:5] != rows["averaged, 4 cycles"][1:5]
    assert output.count(" tells best, by R^2: red ") == output.count(" tells least, by R^2: red ") == known
    assert ("does not know the factors of its faces: no R^2" in output) != known
    assert pictures_in(tmp_path / "runs/08_objectives") == {"plane.png", "kl_by_dimension.png", "pictures.png"}


def test_what_cannot_be_trained_is_one_line(ramps, tmp_path):
    status, line = fail("08_objectives.py", "--data", ramps.folder, *SMALL, "--limit", "4", cwd=tmp_path)
    assert (status, line) == (1, "error: this lesson needs 5 training images or more, and there are 4")


@pytest.mark.parametrize(("size", "expected"), [(128, 32), (70, 35), (32, 32), (16, 16)])
def test_small_faces_are_means_of_blocks(size, expected, rng):
    images, block = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8), size // expected
    small = objectives.small_faces(images)
    assert (small.shape, small.dtype) == ((2, expected, expected, 3), np.uint8)
    for row, column, channel in ((0, 0, 0), (3, 7, 1), (expected - 1, 5, 2)):
        top, left = row * block, column * block
        assert small[1, row, column, channel] == round(
            images[1, top : top + block, left : left + block, channel].mean())


def test_models_at_one_point_are_drawn_apart(tmp_path, monkeypatch):
    faces = np.random.default_rng(0).random((1, 8, 8, 3))
    rows = [{"name": "same", "R": 0.0, "D": 900.0, "slope": 1e5, "faces": faces, "samples": faces} for _ in range(4)]
    rows += [{"name": "far", "R": 90.0, "D": 100.0, "slope": None, "faces": faces, "samples": faces}]
    boxes = []
    monkeypatch.setattr(objectives.pictures, "save_figure", lambda path, chart: (
        chart.savefig(path), boxes.extend(inset.get_window_extent() for inset in chart.axes[0].child_axes)))
    objectives.draw_plane(tmp_path / "plane.png", rows, np.array([[0.0, 90.0], [800.0, 50.0]]), sigma=0.125)
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
