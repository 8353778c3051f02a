"""Lesson 9 and its two commands as a reader runs them."""

import runpy
import shutil
import sys

import numpy as np
import pytest
from conftest import write_dataset
from PIL import Image
from test_lessons import LESSONS, pictures_in, succeed

from vae_np import VAE
from vae_np.run.trainer import Trainer
from vae_np.study.codec import HEADER, Codec
from vae_np.train import Settings, to_float

LESSON = "09_compress.py"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a model, its codec, a face that it has not seen, and what the lesson has said; and the model."""
    folder = tmp_path_factory.mktemp("room")
    dataset = write_dataset(folder / "faces", train=60, test=12)
    images, settings = (dataset.split("train"), dataset.split("validation")), Settings(
        epochs=8, batch_size=8, learning_rate=0.02)
    trainer = Trainer(VAE(16, (6, 8), 5), *images, settings, dataset.description)
    for _ in range(8):
        trainer.train_epoch()
    trainer.save(folder / "mine.npz")
    output = succeed(LESSON, "--checkpoint", "mine.npz", cwd=folder)
    (folder / "output.txt").write_text(output, encoding="utf-8")
    Image.fromarray(dataset.images[-1]).save(folder / "face.png")
    return folder, trainer.model


@pytest.fixture
def lesson(room, monkeypatch, tmp_path, capsys):
    """Run the lesson in this process, in a folder that has no codec yet: its status, and the lines that it printed."""
    shutil.copy(room[0] / "mine.npz", tmp_path)
    shutil.copy(room[0] / "face.png", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [LESSON, "--checkpoint", "mine.npz", *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(LESSONS / LESSON))
        except SystemExit as end:
            status = end.code or 0
        except Exception as error:  # as when a program ends with it
            sys.excepthook(type(error), error, None)
            status = 1
        printed = capsys.readouterr()
        return status, (printed.err if status else printed.out).splitlines()

    return run


def test_the_lesson(room):
    output = (room[0] / "output.txt").read_text(encoding="utf-8")
    rows = [line.rsplit(maxsplit=5) for line in output.splitlines() if " dB " in line]
    kinds = {kind: [[float(value) for value in row[:3]] for name, *row in rows if name.startswith(kind)]
             for kind in ("VAE", "KL", "PCA", "JPEG", "WebP")}
    assert {kind: len(rows) for kind, rows in kinds.items()} == {"VAE": 8, "KL": 1, "PCA": 8, "JPEG": 14, "WebP": 14}
    for kind in ("VAE", "PCA"):
        assert all(size == pytest.approx(bare + HEADER, abs=0.11) for size, bare, _ in kinds[kind])
        sizes = np.array([bare for _, bare, _ in kinds[kind]])
        assert sizes[0] > 1.5 * sizes[-1] and (np.diff(sizes) < 0.2).all(), "coarser steps take fewer bytes"
    assert kinds["VAE"][0][2] > kinds["VAE"][-1][2], "and finer ones give better pictures"
    assert pictures_in(room[0] / "runs/09_compress") == {"bytes_and_psnr.png", "at_equal_bytes.png"}


def test_a_face_goes_through_a_file(room, tmp_path):
    (folder, model), face = room, tmp_path / "face.vaez"
    flags = ["--checkpoint", "mine.npz"]  # before the command or after it
    output = succeed(LESSON, "encode", folder / "face.png", face, *flags, cwd=folder)
    size = face.stat().st_size
    assert HEADER <= size < HEADER + 30
    assert f"face.vaez: {size} bytes, {HEADER} of them the header; crop none, 100% of the picture, " in output
    assert "face.png: 16x16 pixels" in succeed(LESSON, *flags, "decode", face, tmp_path / "face.png", cwd=folder)
    codec = Codec.load(folder / "codec.npz", model)
    mu, _ = model.encode(to_float(np.load(folder / "faces/images.npy")[-1:]))
    expected = 255 * model.decode(codec.dequantise(codec.quantise(mu)))[0]
    with Image.open(tmp_path / "face.png") as picture:
        assert np.abs(np.asarray(picture) - expected).max() < 0.51


def test_a_picture_that_is_squeezed_is_told_what_else_it_could_be(room, tmp_path):
    Image.new("RGB", (16, 24)).save(tmp_path / "tall.png")
    output = succeed(LESSON, "encode", tmp_path / "tall.png", tmp_path / "a.vaez", "--checkpoint", "mine.npz",
                     cwd=room[0])
    assert "the whole picture, squeezed to a square, where --crop square would keep its middle, " in output


def test_files_need_the_codec_that_they_were_made_with(room, lesson, tmp_path):
    status, (line,) = lesson("encode", "face.png", "a.vaez")
    assert (status, line.split(";")[0]) == (2, "error: there is no codec.npz")
    assert "python lessons/09_compress.py --checkpoint mine.npz" in line
    shutil.copy(room[0] / "codec.npz", tmp_path)
    first = (tmp_path / "codec.npz").read_bytes()
    assert lesson("encode", "face.png", "a.vaez")[0] == 0
    assert lesson("--limit", 5)[0] == 0
    assert not (tmp_path / "codec-1.npz").exists(), "the same codec again"
    assert "the codec.npz of an earlier run is now codec-1.npz" in lesson("--limit", 5, "--step", 5)[1]
    assert (tmp_path / "codec-1.npz").read_bytes() == first
    status, line = lesson("decode", "a.vaez", "a.png")
    assert (status, line) == (1, ["error: a.vaez was made with another checkpoint or codec than these"])
    assert lesson("decode", "a.vaez", "a.png", "--codec", "codec-1.npz")[0] == 0
    (tmp_path / "codec.npz").write_bytes(b"no tables")
    status, line = lesson("decode", "a.vaez", "a.png")
    assert (status, line) == (1, ["error: codec.npz is damaged, of another version, or no codec; make it again"])


@pytest.mark.parametrize(("crop", "size", "share"), [("148", (178, 218), 56), ("148", (1780, 2180), 56),
                                                     ("128", (45, 40), 47), ("square", (300, 400), 75)])
def test_a_crop_keeps_as_much_of_a_picture_of_any_size(room, lesson, tmp_path, crop, size, share):
    shutil.copy(room[0] / "codec.npz", tmp_path)
    Image.new("RGB", size).save(tmp_path / "picture.png")
    status, (line,) = lesson("encode", "picture.png", "a.vaez", "--crop", crop)
    assert status == 0 and f"crop {crop}, {share}% of the picture, " in line


def test_what_cannot_be_encoded_or_decoded_is_one_line(room, lesson, tmp_path):
    shutil.copy(room[0] / "codec.npz", tmp_path)
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "empty.vaez").write_bytes(b"")
    (tmp_path / "folder.vaez").mkdir()
    assert lesson("encode", "face.png", "changed.vaez")[0] == 0
    content = (tmp_path / "changed.vaez").read_bytes()
    (tmp_path / "cut.vaez").write_bytes(content[: HEADER - 1])
    (tmp_path / "changed.vaez").write_bytes(content + b"!")
    before = sorted(tmp_path.iterdir())
    for arguments, status, complaint in (
        ("encode text.png a.vaez", 1, "text.png cannot be decoded (it is no picture"),
        ("encode none.png a.vaez", 1, "none.png is missing or no ordinary file"),
        ("encode . a.vaez", 1, ". is missing or no ordinary file"),
        ("encode face.png folder.vaez", 1, "folder.vaez"),
        ("encode face.png face.png", 2, "encode writes .vaez files, and face.png is not named so"),
        ("encode face.png a.vaez --crop 200", 2, "argument --crop: '200' is neither none, square, nor a number"),
        ("--step 8 encode face.png a.vaez", 2, "codec.npz was made for; leave --step out"),
        ("encode face.png", 2, "the following arguments are required: OUT.vaez"),
        ("encode face.png a.vaez --checkpoint none.npz", 2, "there is no checkpoint none.npz; lesson 03"),
        ("decode face.png a.png", 1, "face.png is no .vaez file"),
        ("decode empty.vaez a.png", 1, "empty.vaez is empty"),
        ("decode cut.vaez a.png", 1, "cut.vaez is damaged (its length is wrong)"),
        ("decode changed.vaez a.png", 1, "changed.vaez is damaged (its checksum is ano"),
        ("decode none.vaez a.png", 1, "none.vaez"),
        ("decode folder.vaez a.png", 1, "folder.vaez"),
        ("decode cut.vaez a.vaez", 2, "decode writes .png files"),
        ("mend face.png a.vaez", 2, "invalid choice: 'mend'"),
    ):
        ended, lines = lesson(*arguments.split())
        assert (ended, len(lines), complaint in lines[0]) == (status, 1, True), lines
    assert sorted(tmp_path.iterdir()) == before
