"""Lesson 9 and its two commands as a reader runs them; and pictures of any kind, read as a dataset's were."""

import shutil

import numpy as np
import pytest
from conftest import write_dataset
from PIL import Image
from test_lessons import SMALL, fail, pictures_in, succeed

from data_tools.celeba import decode
from data_tools.photograph import read_photograph
from vae_np.disk.dataset import to_float
from vae_np.errors import DatasetError, InputError
from vae_np.run import checkpoint
from vae_np.study.codec import HEADER, Codec

LESSON = "09_compress.py"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a small dataset, a model trained on it, and what the lesson has said and written."""
    folder = tmp_path_factory.mktemp("room")
    write_dataset(folder / "faces", train=60, validation=10, test=12)
    succeed("03_train.py", "--data", "faces", *SMALL, "--epochs", 4, "--lr", 0.02, cwd=folder)
    (folder / "output.txt").write_text(succeed(LESSON, cwd=folder), encoding="utf-8")
    Image.fromarray(np.load(folder / "faces" / "images.npy")[-1]).save(folder / "face.png")
    return folder


def test_the_lesson(room):
    output = (room / "output.txt").read_text(encoding="utf-8")
    rows = [line.rsplit(maxsplit=5) for line in output.splitlines() if " dB " in line]
    kinds = {kind: [[float(value) for value in row[:3]] for name, *row in rows if name.startswith(kind)]
             for kind in ("VAE", "KL", "PCA", "JPEG", "WebP")}
    assert {kind: len(rows) for kind, rows in kinds.items()} == {"VAE": 8, "KL": 1, "PCA": 6, "JPEG": 14, "WebP": 14}
    for kind in ("VAE", "PCA"):
        assert all(size == pytest.approx(bare + HEADER, abs=0.11) for size, bare, _ in kinds[kind])
        assert sorted(kinds[kind], reverse=True) == kinds[kind], "coarser steps take fewer bytes"
    assert kinds["VAE"][0][2] > kinds["VAE"][-1][2], "and finer ones give better pictures"
    assert pictures_in(room / "runs/09_compress") == {"bytes_and_psnr.png", "at_equal_bytes.png"}


def test_a_face_goes_through_a_file(room, tmp_path):
    output = succeed(LESSON, "encode", room / "face.png", tmp_path / "face.vaez", cwd=room)
    size = (tmp_path / "face.vaez").stat().st_size
    assert HEADER <= size < HEADER + 30
    assert f"face.vaez: {size} bytes, {HEADER} of them the header; the whole picture, squeezed to a square, " in output
    output = succeed(LESSON, "decode", tmp_path / "face.vaez", tmp_path / "face.png", cwd=room)
    assert "face.png: 16x16 pixels" in output
    model, _, _ = checkpoint.load_model(room / "runs/03_train/checkpoint.npz")
    codec = Codec.load(room / "runs/03_train/codec.npz", model)
    mu, _ = model.encode(to_float(np.load(room / "faces/images.npy")[-1:]))
    expected = 255 * model.decode(codec.dequantise(codec.quantise(mu)))[0]
    with Image.open(tmp_path / "face.png") as picture:
        assert np.abs(np.asarray(picture) - expected).max() < 0.51


def test_another_machine_needs_the_checkpoint_and_the_codec(room, tmp_path):
    succeed(LESSON, "encode", room / "face.png", tmp_path / "a.vaez", cwd=room)
    shutil.copy(room / "runs/03_train/checkpoint.npz", tmp_path / "mine.npz")
    flags = ["--checkpoint", "mine.npz"]
    status, line = fail(LESSON, "decode", "a.vaez", "a.png", *flags, cwd=tmp_path)
    assert (status, line.split(";")[0]) == (2, "error: there is no codec.npz")
    assert "python lessons/09_compress.py --checkpoint mine.npz" in line
    shutil.copy(room / "runs/03_train/codec.npz", tmp_path / "tables.npz")
    succeed(LESSON, *flags, "decode", "a.vaez", "a.png", "--codec", "tables.npz", cwd=tmp_path)
    succeed(LESSON, "decode", "a.vaez", "b.png", "--codec", "tables.npz", *flags, cwd=tmp_path)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    (tmp_path / "tables.npz").write_bytes(b"no tables")
    status, line = fail(LESSON, "decode", "a.vaez", "a.png", "--codec", "tables.npz", *flags, cwd=tmp_path)
    assert (status, line) == (1, "error: tables.npz is damaged, of another version, or no codec; make it again")


def test_running_the_lesson_again_keeps_what_files_were_made_with(room, tmp_path):
    path = tmp_path / "checkpoint.npz"
    shutil.copy(room / "runs/03_train/checkpoint.npz", path)
    flags = ["--checkpoint", path, "--limit", 5]
    succeed(LESSON, *flags, cwd=tmp_path)
    first = (tmp_path / "codec.npz").read_bytes()
    assert "codec-1.npz" not in succeed(LESSON, *flags, cwd=tmp_path)
    assert (tmp_path / "codec.npz").read_bytes() == first
    succeed(LESSON, "encode", room / "face.png", "a.vaez", "--checkpoint", path, cwd=tmp_path)
    assert "is now" in succeed(LESSON, *flags, "--step", 5, cwd=tmp_path)
    assert (tmp_path / "codec-1.npz").read_bytes() == first
    status, line = fail(LESSON, "decode", "a.vaez", "a.png", "--checkpoint", path, cwd=tmp_path)
    assert (status, line) == (1, "error: a.vaez was made with another checkpoint or codec than these")
    succeed(LESSON, "decode", "a.vaez", "a.png", "--checkpoint", path, "--codec", "codec-1.npz", cwd=tmp_path)


def test_what_cannot_be_encoded_or_decoded_is_one_line(room, tmp_path):
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "empty.vaez").write_bytes(b"")
    (tmp_path / "folder.vaez").mkdir()
    succeed(LESSON, "encode", "face.png", tmp_path / "cut.vaez", cwd=room)
    (tmp_path / "cut.vaez").write_bytes((tmp_path / "cut.vaez").read_bytes()[: HEADER - 1])
    succeed(LESSON, "encode", "face.png", tmp_path / "changed.vaez", cwd=room)
    (tmp_path / "changed.vaez").write_bytes((tmp_path / "changed.vaez").read_bytes() + b"!")
    before = sorted(tmp_path.iterdir())
    for arguments, status, complaint in (
        (["encode", tmp_path / "text.png", tmp_path / "a.vaez"], 1, "text.png cannot be read (no image that Pillow"),
        (["encode", tmp_path / "none.png", tmp_path / "a.vaez"], 1, "none.png cannot be read ("),
        (["encode", tmp_path, tmp_path / "a.vaez"], 1, " cannot be read ("),
        (["encode", "face.png", tmp_path / "folder.vaez"], 1, "folder.vaez"),
        (["encode", "face.png", "face.png"], 2, "encode writes .vaez files, and face.png is not named so"),
        (["encode", "face.png", "a.vaez", "--crop", "148"], 1, "face.png has 16x16 pixels, too few for a crop of 148"),
        (["--step", "9", "encode", "face.png", "a.vaez"], 2, "codec.npz was made for; leave --step out"),
        (["encode", "face.png"], 2, "the following arguments are required: OUT.vaez"),
        (["encode", "face.png", "a.vaez", "--checkpoint", "none.npz"], 2, "there is no checkpoint none.npz; lesson 03"),
        (["decode", "face.png", tmp_path / "a.png"], 1, "face.png is no .vaez file"),
        (["decode", tmp_path / "empty.vaez", tmp_path / "a.png"], 1, "empty.vaez is empty"),
        (["decode", tmp_path / "cut.vaez", tmp_path / "a.png"], 1, "cut.vaez is damaged (its length is wrong)"),
        (["decode", tmp_path / "changed.vaez", tmp_path / "a.png"], 1, "changed.vaez is damaged (its checksum is ano"),
        (["decode", tmp_path / "none.vaez", tmp_path / "a.png"], 1, "none.vaez"),
        (["decode", tmp_path / "folder.vaez", tmp_path / "a.png"], 1, "folder.vaez"),
        (["decode", tmp_path / "cut.vaez", tmp_path / "a.vaez"], 2, "decode writes .png files"),
        (["mend", "face.png", "a.vaez"], 2, "invalid choice: 'mend'"),
    ):
        ended, line = fail(LESSON, *arguments, cwd=room)
        assert (ended, complaint in line) == (status, True), line
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def photograph(rng):
    """A picture in the size of CelebA's, 178 wide and 218 high."""
    return Image.fromarray(np.kron(rng.integers(0, 256, (109, 89, 3)), np.ones((2, 2, 1))).astype(np.uint8))


@pytest.mark.parametrize("crop", [148, "none"])
def test_a_photograph_is_read_as_the_dataset_s_were(photograph, tmp_path, crop):
    photograph.save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "rb") as file:
        expected, _ = decode(file, crop, 64)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.jpg", crop, 64), expected)


def test_the_square_is_cut_before_it_is_scaled(photograph, tmp_path):
    photograph.save(tmp_path / "a.png")
    square = photograph.crop((15, 35, 15 + 148, 35 + 148))
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png", 148, 64),
                                  np.asarray(square.resize((64, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "gif", "tiff", "ppm"])
def test_other_kinds_and_modes_are_read(photograph, tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    photograph.convert("L").convert("P" if ending == "gif" else "RGB").save(tmp_path / f"a.{ending}", **options)
    photograph.convert("L").convert("RGB").save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / f"a.{ending}", 148, 64),
                                  read_photograph(tmp_path / "plain.png", 148, 64))


def test_a_photograph_is_turned_upright(photograph, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by a quarter to see it
    photograph.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    photograph.save(tmp_path / "b.png")
    np.testing.assert_array_equal(*(read_photograph(tmp_path / name, 148, 64) for name in ("a.png", "b.png")))


def test_what_is_no_photograph_is_refused(photograph, tmp_path, monkeypatch):
    photograph.save(tmp_path / "a.png")
    photograph.save(tmp_path / "program.eps")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for name, reason in (("none.png", ""), ("program.eps", "no image that Pillow knows"), ("cut.png", "")):
        with pytest.raises(InputError, match=rf"{name} cannot be read \({reason}") as error:
            read_photograph(tmp_path / name, 148, 64)
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match=r"a.png has 178x218 pixels, too few for a crop of 200"):
        read_photograph(tmp_path / "a.png", 200, 64)
    monkeypatch.setattr("data_tools.photograph.MOST_PIXELS", 178 * 218 - 1)
    with pytest.raises(InputError, match="178x218 pixels are too many"):
        read_photograph(tmp_path / "a.png", 148, 64)
