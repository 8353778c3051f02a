"""Read one picture of any kind as the images of a dataset were read."""

import warnings

from PIL import Image, ImageOps

from data_tools.celeba import MOST_PIXELS, cut
from vae_np.errors import InputError


def read_photograph(path, crop, size):
    """The picture in a file that Pillow reads, turned upright, cut and scaled: uint8 (size, size, 3).

    crop is the side of the central square in pixels, or "none", as dataset.json records it. Raises InputError if the
    file is no picture, damaged or too large, DatasetError if the square is larger than it.
    """
    Image.init()
    formats = sorted(set(Image.OPEN) - {"EPS"})  # which is a program, and Pillow starts another to run it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of large images, refused below, and of what it reads anyway
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > MOST_PIXELS:  # before there is memory for a pixel
                    raise ValueError(f"{image.width}x{image.height} pixels are too many")
                upright = ImageOps.exif_transpose(image)
    except Exception as error:  # each of Pillow's decoders has exceptions of its own for a damaged file
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "no image that Pillow knows" if unknown else getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason})") from None
    return cut(upright, crop, size, path)
