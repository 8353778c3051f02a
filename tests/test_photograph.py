"""Pictures of any kind, read as those of a dataset were."""

import numpy as np
import pytest
from PIL import Image

from data_tools.celeba import decode
from data_tools.photograph import read_photograph
from vae_np.errors import DatasetError, InputError


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
    square = photograph.crop((15, 35, 15 + 148, 35 + 148)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png", 148, 64), np.asarray(square))


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "gif", "tiff", "ppm"])
def test_other_kinds_and_modes_are_read(photograph, tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    photograph.convert("L").convert("P" if ending == "gif" else "RGB").save(tmp_path / f"a.{ending}", **options)
    photograph.convert("L").convert("RGB").save(tmp_path / "plain.png")
    np.testing.assert_array_equal(*(read_photograph(tmp_path / name, 148, 64) for name in (f"a.{ending}", "plain.png")))


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
