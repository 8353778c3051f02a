"""Turn any download of CelebA into a prepared dataset (see vae_np/disk/dataset.py).

    python -m data_tools.celeba archive.zip --out data/celeba64

SOURCE may be Kaggle's archive.zip, the official img_align_celeba.zip with its lists beside it, or a folder that either
was unpacked to. Each image, 178 wide and 218 high, is cut to its central square (148 pixels, as most recipes for CelebA
do) and scaled to --size with an antialiased bilinear filter. Results are comparable only between equal crops, so the
dataset records its own.
"""

import argparse
import functools
import io
import os
import re
import sys
import time
import warnings

import numpy as np
from PIL import Image

from data_tools.celeba_source import find_celeba, read_attributes, read_partition
from data_tools.prepared import DatasetWriter, map_rows
from vae_np.disk.dataset import SPLITS
from vae_np.errors import DatasetError
from vae_np.run.command import OneLineParser, number_in, run

CROPS = (148, 140, 128, "none")
SIZES = range(8, 179)  # up to the photographs' own width
COUNTS = range(1, 1_000_000)
OFFICIAL_NAME = re.compile(r"([0-9]{6})\.(jpg|png)")
OFFICIAL_LAST = (162_770, 182_637, 202_599)  # the number of the last image of train, validation and test
FORMATS = ("JPEG", "PNG")  # each other one that Pillow knows is another way in, and no copy of CelebA has it
MOST_PIXELS = 1 << 24  # of one image, which takes 64 MB to decode; an aligned photograph has 38,804


def crop_box(width, height, crop):
    """The central square of crop x crop pixels as (left, top, right, bottom); the whole frame if crop is "none".

    An odd margin is rounded as torchvision's CenterCrop rounds it. The square may be larger than the image.
    """
    if crop == "none":
        return 0, 0, width, height
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return left, top, left + crop, top + crop


def read_image(file):
    """Decode an image file, whatever its colours. Raises DatasetError if it is damaged, too large or no image."""
    data = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of large images, refused below, and of what it reads anyway
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height <= MOST_PIXELS:  # as its header says, before there is memory for a pixel
                image.load()
                return image
    except Exception as error:  # each of Pillow's decoders has exceptions of its own for a damaged file
        reason = "no JPEG or PNG image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DatasetError(f"{file} cannot be decoded ({reason}); download or unpack it again") from None
    raise DatasetError(f"{file} has {image.width}x{image.height} pixels, too many for a photograph of CelebA; "
                       "download or unpack it again")


def to_rgb(image):
    """The RGB image of a grey, palette, CMYK or transparent one, which loses its transparency."""
    if image.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion keeps the wrong ones
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def cut(image, crop, size, name):
    """The central square of an image of any mode, scaled to uint8 (size, size, 3). name is what errors call the image.

    Raises DatasetError if the square is larger than the image.
    """
    if crop != "none" and min(image.size) < crop:
        raise DatasetError(f"{name} has {image.width}x{image.height} pixels, too few for a crop of {crop}; "
                           "choose a smaller --crop, or none")
    if image.mode != "RGB":
        image = to_rgb(image)
    box = crop_box(image.width, image.height, crop)
    # Cut first: resize(box=...) would let the filter see pixels outside the square, as torchvision's recipes do not.
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


def decode(file, crop, size):
    """Decode, crop and scale an image file: uint8 (size, size, 3), and whether it had to be converted to RGB.

    Raises DatasetError, naming the file.
    """
    image = read_image(file)
    return cut(image, crop, size, file), image.mode != "RGB"


def decode_rows(start, stop, files, images_path, crop, size):
    """Decode the files of rows start..stop into the array on disk at images_path; run by worker processes.

    Returns {row: what is wrong with its image} of those that cannot be used, and the rows that were converted to RGB.
    """
    images = np.load(images_path, mmap_mode="r+")
    damaged, converted = {}, []
    for row, file in zip(range(start, stop), files, strict=True):
        try:
            images[row], was_converted = decode(file, crop, size)
        except DatasetError as error:
            damaged[row] = str(error)
            continue
        if was_converted:
            converted.append(row)
    return damaged, converted


def decode_all(files, images_path, crop, size, workers):
    """Decode all files with worker processes; returns what `decode_rows` does, of all rows."""
    task = functools.partial(decode_rows, images_path=images_path, crop=crop, size=size)
    damaged, converted = {}, []
    for *_, (some_damaged, some_converted) in map_rows(task, len(files), workers, "decoding", items=files):
        damaged |= some_damaged
        converted += some_converted
    return damaged, converted


def official_split(name):
    """The split that CelebA's authors gave an image, by its number: 0 train, 1 validation, 2 test."""
    match = OFFICIAL_NAME.fullmatch(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= OFFICIAL_LAST[-1]:
        raise DatasetError(f"there is no list_eval_partition.csv or .txt, and {name} is none of CelebA's file names "
                           "(000001.jpg to 202599.jpg); put the list beside the images")
    return int(np.searchsorted(OFFICIAL_LAST, number))


def check_listed(listed, images, list_file):
    """Raise DatasetError unless a list and the images name the same files."""
    for names, problem in (
        (listed.keys() - images.keys(), "lists images that are absent ({count:,}, the first {first})"),
        (images.keys() - listed.keys(), "leaves out images that are there ({count:,}, the first {first})"),
    ):
        if names:
            raise DatasetError(f"{list_file} {problem.format(count=len(names), first=min(names))}; "
                               "use images and lists of the same download, complete")


def split_names(download):
    """The file names of each split, sorted: three lists, for train, validation and test."""
    if download.partition_list:
        splits = read_partition(download.partition_list)
        check_listed(splits, download.images, download.partition_list)
        print(f"splits from {download.partition_list}")
    else:
        splits = {name: official_split(name) for name in download.images}
        print("no list_eval_partition.csv or .txt found: the official splits, by file number")
    names = [[], [], []]
    for name in sorted(splits):
        names[splits[name]].append(name)
    return names


def share(limit, counts):
    """Share `limit` images among splits in proportion to their counts; a split that has images keeps at least one."""
    total = sum(counts)
    if limit is None or limit >= total:
        return list(counts)
    if limit < np.count_nonzero(counts):
        raise DatasetError(f"--limit {limit} leaves a split without images; give {np.count_nonzero(counts)} or more")
    kept = [max(1, round(limit * count / total)) if count else 0 for count in counts]
    kept[int(np.argmax(counts))] += limit - sum(kept)
    return kept


def load_attributes(download, names):
    """The attribute names (A of them) and the values of the named images, bool (N, A); A is 0 without a list."""
    if not download.attribute_list:
        print("no list_attr_celeba.csv or .txt found: the dataset has no attributes")
        return [], np.zeros((len(names), 0), dtype=np.bool_)
    attribute_names, rows = read_attributes(download.attribute_list)
    check_listed(rows, download.images, download.attribute_list)
    print(f"{len(attribute_names)} attributes from {download.attribute_list}")
    values = np.frombuffer(b"".join(rows[name] for name in names), dtype=np.bool_)
    return attribute_names, values.reshape(len(names), len(attribute_names))


def check_damaged(damaged, count, skip):
    """Raise DatasetError if images cannot be used, unless they are to be skipped and others are left."""
    if not damaged:
        return
    first = next(iter(damaged.values()))
    if len(damaged) == count:
        raise DatasetError(f"{first}; none of {count:,} images can be used")
    if not skip:
        raise DatasetError(f"{first}; in all, {len(damaged):,} of {count:,} images cannot be used, and --skip-damaged "
                           "leaves them out")
    print(f"skipped {len(damaged):,} of {count:,} images that cannot be used, all named in dataset.json: {first}")


def other_rows(rows, counts):
    """All rows but these, and how many of them each split has."""
    splits = np.repeat(range(len(SPLITS)), counts)
    others = np.setdiff1d(np.arange(len(splits)), list(rows))
    return others.tolist(), np.bincount(splits[others], minlength=len(SPLITS)).tolist()


def prepare(source, out, size=64, crop=148, limit=None, workers=1, overwrite=False, skip_damaged=False):
    """Write the prepared dataset of a CelebA download into the folder `out`, and print what it has.

    Raises DatasetError, with a message of one line; then nothing is left in `out`.
    """
    started = time.perf_counter()
    download = find_celeba(source)
    names = split_names(download)
    counts = share(limit, [len(part) for part in names])
    names = [name for part, count in zip(names, counts, strict=True) for name in part[:count]]
    attribute_names, attributes = load_attributes(download, names)
    with DatasetWriter(out, len(names), size, overwrite) as writer:
        files = [download.images[name] for name in names]
        damaged, converted = decode_all(files, writer.images_path, crop, size, workers)
        check_damaged(damaged, len(names), skip_damaged)
        if converted:
            print(f"converted to RGB: {len(converted):,} images, the first {names[converted[0]]}")
        skipped = [names[row] for row in damaged]
        if damaged:
            kept, counts = other_rows(damaged, counts)
            writer.keep(kept)
            attributes, names = attributes[kept], [names[row] for row in kept]
        writer.finish(source="CelebA", crop=crop, attributes=attributes, attribute_names=attribute_names,
                      splits=dict(zip(SPLITS, counts, strict=True)), file_names=names,
                      info={"resampling": "bilinear, antialiased", "skipped": skipped})
    for split, count in zip(SPLITS, counts, strict=True):
        print(f"{split:10} {count:9,} images" + ("" if count else ": this copy of CelebA has none"))
    seconds = time.perf_counter() - started
    print(f"{'all':10} {len(names):9,} images in {seconds:.1f} s, {len(names) / seconds:,.0f} per second: {out}")


def crop_choice(text):
    """The crop as CROPS has it: a number, or a word."""
    return int(text) if text.isdecimal() else text


def parse_arguments(arguments):
    """The options of the command, as `prepare` takes them. Wrong usage ends the program with status 2."""
    parser = OneLineParser(prog="python -m data_tools.celeba", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a zip archive of CelebA, or a folder")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument("--size", type=number_in(SIZES), default=64, help="width and height in pixels (default 64)")
    parser.add_argument("--crop", type=crop_choice, choices=CROPS, default=148,
                        help="central square to keep, in pixels; none squashes the whole frame (default 148)")
    parser.add_argument("--limit", metavar="N", type=number_in(COUNTS), help="keep N images, spread over the splits")
    parser.add_argument("--workers", metavar="N", type=number_in(COUNTS), default=os.cpu_count() or 1,
                        help="processes that decode (default: one per processor)")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared dataset in DIR")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out images that cannot be used")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; return its exit status."""
    return run(prepare, **vars(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
