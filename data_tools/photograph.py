"""Read photographs: the one place that decides on their kinds, orientation, colours, crop and scale."""

import argparse
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from vae_np.errors import DatasetError

Image.init()
# Without EPS, which is a program that Pillow starts another to run, and without what Pillow knows by name alone.
FORMATS = sorted(set(Image.OPEN) - {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
COMMON = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")  # those that are known for certain by how they begin
# Of files that are meant as pictures; those of the last two, as telephones write them, Pillow cannot read alone.
SUFFIXES = (*sorted(suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS), ".heic", ".heif")
MOST_PIXELS = 1 << 26  # of one picture, which takes 270 MB to decode; a telephone's have 12 or 50 million
AMPLE = 8  # times as many pixels as asked for: of a JPEG that has more, a half, a quarter or an eighth is decoded
CELEBA_WIDTH = 178


def crop_choice(text):
    """The argparse type of crops: "none", "square", or a number (see `crop_box`)."""
    if text in ("none", "square"):
        return text
    if text.isdecimal() and 8 <= int(text) <= CELEBA_WIDTH:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither none, square, nor a number between 8 and {CELEBA_WIDTH}")


def crop_box(width, height, crop):
    """The part of a picture that a crop keeps, as (left, top, right, bottom).

    "none" is the whole frame and "square" the largest square in its middle. A number N is a square of N / 178 of the
    short side: N pixels of one of CelebA's photographs, and as much of a picture of any other size. An odd margin is
    rounded as torchvision's CenterCrop rounds it.
    """
    if crop == "none":
        return 0, 0, width, height
    side = min(width, height)
    if crop != "square":
        side = max(1, round(side * crop / CELEBA_WIDTH))
    left, top = round((width - side) / 2), round((height - side) / 2)
    return left, top, left + side, top + side


def share_kept(width, height, crop):
    """How much of a picture's area a crop keeps, from 0 to 1."""
    left, top, right, bottom = crop_box(width, height, crop)
    return (right - left) * (bottom - top) / (width * height)


def is_picture(data):
    """Whether the bytes of a file, whatever its name, begin as one of the common kinds of pictures does."""
    try:
        Image.open(io.BytesIO(data), formats=COMMON).close()
    except Exception:  # each of Pillow's decoders has exceptions of its own
        return False
    return True


def to_rgb(image):
    """The RGB image of one of any mode; what is transparent shows white paper."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and it does not say which is white")
    if image.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion keeps the wrong ones
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_photograph(file, crop, size):
    """A picture turned upright, cut and scaled: uint8 (size, size, 3); its frame (width, height); and its mode.

    file has a method read, and its str names it in errors. Raises DatasetError if the picture is damaged, too large, or
    none that Pillow knows.
    """
    data = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of large images, refused below, and of what it reads anyway
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                frame, mode = image.size, image.mode
                image.draft(None, (AMPLE * size, AMPLE * size))
                if image.width * image.height > MOST_PIXELS:  # as its header says, before there is memory for a pixel
                    raise ValueError(f"{frame[0]}x{frame[1]} pixels are too many")
                upright = ImageOps.exif_transpose(image)
                if upright.size != image.size:
                    frame = frame[::-1]
        # Cut first: resize(box=...) would let the filter see pixels outside the square; torchvision's recipes do not.
        cut = to_rgb(upright.crop(crop_box(*upright.size, crop)))
        return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)), frame, mode
    except Exception as error:  # each of Pillow's decoders has exceptions of its own for a damaged file
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is no picture that Pillow knows, such as a JPEG or PNG file" if unknown else str(error)
        raise DatasetError(f"{file} cannot be decoded ({' '.join(reason.split())})") from None
