"""Pictures of any kind: the one reader that data tools and the codec share."""

import io

import numpy as np
import pytest
from PIL import Image

from data_tools import photograph
from data_tools.files import PlainFile
from data_tools.photograph import read_photograph
from vae_np.errors import DatasetError


@pytest.fixture
def picture(rng):
    """A picture in the size of CelebA's, 178 wide and 218 high."""
    return Image.fromarray(np.kron(rng.integers(0, 256, (109, 89, 3)), np.ones((2, 2, 1))).astype(np.uint8))


@pytest.fixture
def read(tmp_path):
    """A function that saves an image and reads it again."""
    def save_and_read(image, crop="none", size=64, kind="png", **options):
        path = tmp_path / f"a.{kind}"
        image.save(path, **options)
        return read_photograph(PlainFile(str(path)), crop, size)

    return save_and_read


def coordinates(width, height):
    """An image whose red is each pixel's x, and whose green is its y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(("width", "height", "crop", "side", "left", "top"), [
    (178, 218, 148, 148, 15, 35), (178, 218, 128, 128, 25, 45), (218, 178, 148, 148, 35, 15),
    (181, 217, 146, 148, 16, 34),  # margins of 16.5 and 34.5 go to the even neighbour, as torchvision's do
    (89, 109, 148, 74, 8, 18), (178, 218, "square", 178, 0, 20), (60, 40, "square", 40, 10, 0),
])
def test_crop_takes_the_central_square_of_a_picture_of_any_size(read, width, height, crop, side, left, top):
    pixels, frame, mode = read(coordinates(width, height), crop, size=side)
    assert (frame, mode) == ((width, height), "RGB")
    np.testing.assert_array_equal(pixels, np.asarray(coordinates(width, height))[top:, left:][:side, :side])
    assert photograph.share_kept(width, height, crop) == side**2 / (width * height)


def test_scaling_is_antialiased_and_squashes_the_whole_frame_if_there_is_no_crop(read):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (218, 89))).convert("RGB")
    np.testing.assert_allclose(read(stripes, 148, size=37)[0], 127.5, atol=16)  # four-fold: as much black as white
    pixels = read(coordinates(178, 218), size=109)[0].astype(float)
    middle = np.arange(109)[4:-4] + 0.5
    np.testing.assert_allclose(pixels[50, 4:-4, 0], middle * 178 / 109 - 0.5, atol=1)
    np.testing.assert_allclose(pixels[4:-4, 50, 1], middle * 218 / 109 - 0.5, atol=1)


def test_a_large_jpeg_is_decoded_in_part_and_looks_the_same(picture, read, monkeypatch):
    large = picture.resize((1780, 2180), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, frame, _ = read(large.transpose(Image.Transpose.ROTATE_90), 148, size=16, kind="jpg", exif=exif)
    assert frame == (1780, 2180)
    np.testing.assert_allclose(pixels, read(large, 148, size=16)[0].astype(int), atol=8)
    monkeypatch.setattr(photograph, "MOST_PIXELS", 1780 * 2180 // 16)
    read(large, kind="jpg", size=16)


def test_the_square_is_cut_before_it_is_scaled(picture, read):
    square = picture.crop((15, 35, 15 + 148, 35 + 148)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read(picture, 148)[0], np.asarray(square))


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "gif", "tiff", "ppm", "jp2", "tga"])
def test_every_kind_of_file_is_read(picture, read, kind):
    options = {"lossless": True} if kind == "webp" else {}
    grey = picture.convert("L")
    pixels, *_ = read(grey.convert("P" if kind == "gif" else "RGB"), kind=kind, **options)
    np.testing.assert_array_equal(pixels, read(grey.convert("RGB"))[0])


CLEAR_RED = (255, 0, 0, 0)  # of which one sees nothing
PALETTE = Image.new("P", (9, 9), 0)
PALETTE.putpalette([255, 0, 0, 0, 0, 255])


@pytest.mark.parametrize(("image", "options", "colour"), [
    *((Image.new("RGB", (9, 9), "white").convert(mode), {}, 255) for mode in ("L", "LA", "RGBA", "P", "1")),
    (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), {"kind": "jpg"}, (254, 0, 0)),
    (Image.new("RGBA", (9, 9), CLEAR_RED), {}, 255), (Image.new("RGBA", (9, 9), (0, 0, 0, 127)), {}, 128),
    (Image.new("LA", (9, 9), (0, 0)), {}, 255), (Image.new("RGB", (9, 9), "red"), {"transparency": (255, 0, 0)}, 255),
    (PALETTE, {}, (255, 0, 0)), (PALETTE, {"transparency": 0}, 255), (PALETTE, {"transparency": 0, "kind": "gif"}, 255),
    (Image.fromarray(np.full((9, 9), 0x80FF, np.uint16)), {}, 0x80),
    (Image.fromarray(np.full((9, 9), 0x80FF, np.uint16)), {"kind": "tiff"}, 0x80),
    (Image.fromarray(np.full((9, 9), 0x1FFFF, np.int32)), {"kind": "tiff"}, 255),
    (Image.new("F", (9, 9), 0.5), {"kind": "tiff"}, None),
])
def test_colours_of_every_mode_are_seen_as_on_white_paper_or_refused(read, image, options, colour):
    if colour is None:
        with pytest.raises(DatasetError, match=r"a.tiff cannot be decoded \(.*floating"):
            read(image, **options)
        return
    pixels, _, mode = read(image, size=9, **options)
    assert mode != "RGB" or "transparency" in options
    np.testing.assert_allclose(pixels, np.broadcast_to(colour, (9, 9, 3)), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_pictures_are_turned_upright(picture, read, orientation, mode):
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that undoes it
    image = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if turned is None else image.transpose(turned)
    upright, frame, _ = read(stored, 148, exif=exif)
    assert frame == (178, 218)
    np.testing.assert_array_equal(upright, read(image, 148)[0])


def test_what_is_no_picture_is_refused_in_one_line(picture, read, tmp_path, monkeypatch):
    read(picture)
    picture.save(tmp_path / "program.eps")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    (tmp_path / "empty.png").touch()
    for name, reason in (("none.png", "is missing"), ("program.eps", "cannot be decoded (it is no picture that Pillow"),
                         ("cut.png", "cannot be decoded ("), ("empty.png", "cannot be decoded ("), (".", "is missing")):
        with pytest.raises(DatasetError) as error:
            read_photograph(PlainFile(str(tmp_path / name)), 148, 64)
        assert reason in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(photograph, "MOST_PIXELS", 178 * 218 - 1)
    with pytest.raises(DatasetError, match="178x218 pixels are too many"):
        read(picture)


def test_pictures_are_known_by_what_they_hold(picture):
    for kind in photograph.COMMON:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        assert photograph.is_picture(buffer.getvalue())
    for data in (b"", b"no picture", bytes(1000), b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        assert not photograph.is_picture(data)
