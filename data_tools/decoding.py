"""From files of pictures to a prepared dataset: what `data_tools.celeba` and `data_tools.pictures` share."""

import argparse
import functools
import hashlib
import math
import os
import time

import numpy as np

from data_tools.photograph import crop_box, crop_choice, is_picture, read_photograph, share_kept
from data_tools.prepared import DatasetWriter, map_rows
from vae_np.disk.dataset import SPLITS
from vae_np.errors import DatasetError
from vae_np.run.command import POSITIVE, OneLineParser, number_in


def split_choice(text):
    """The argparse type of --split: three numbers that are made to add up to 1."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not three shares, such as 0.8,0.1,0.1")
    return [share / sum(shares) for share in shares]


def parser_of(prog, doc, crop):
    """A parser with the options that both commands have."""
    parser = OneLineParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument("--size", metavar="N", type=number_in(range(8, 513)), default=64,
                        help="width and height in pixels (default 64)")
    parser.add_argument("--crop", type=crop_choice, default=crop, metavar="none|square|N",
                        help="none squashes the whole frame, square keeps its central square, and N a square of N "
                        f"pixels, were the short side 178, as CelebA's is (default {crop})")
    parser.add_argument("--split", type=split_choice, metavar="A,B,C", help="shares of training, validation and test "
                        "images, such as 0.8,0.1,0.1, chosen by a hash of each file: copies stay together")
    parser.add_argument("--partial", action="store_true", help="leave out images that a list lacks, and lines of "
                        "images that are absent")
    parser.add_argument("--workers", metavar="N", type=POSITIVE, default=os.cpu_count() or 1,
                        help="processes that decode (default: one per processor)")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared dataset in DIR")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out images that cannot be used")
    return parser


def examine_rows(start, stop, files):
    """For each file the SHA-256 of its bytes, and whether they begin as a picture's; run by worker processes."""
    examined = []
    for file in files:
        try:
            data = file.read()
        except DatasetError:  # which is raised again when the picture is to be decoded
            data = b""
        examined.append((hashlib.sha256(data).digest(), is_picture(data)))
    return examined


def examine_all(files, workers):
    """What `examine_rows` returns, of all files."""
    chunks = map_rows(examine_rows, len(files), workers, "examining", items=files)
    return [one for *_, examined in chunks for one in examined]


def split_by_content(digests, shares):
    """The split of each file, 0 train, 1 validation, 2 test, by its SHA-256: that of a file never changes."""
    places = [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]
    return np.searchsorted(np.cumsum(shares[:2]), places, side="right").tolist()


def check_counts(counts):
    """Raise DatasetError unless there are images to train on, and images to watch the training with."""
    for split, count in zip(SPLITS[:2], counts, strict=False):
        if not count:
            raise DatasetError(f"none of {sum(counts):,} images is for {split}, and no model can be trained without; "
                               "share them out anew with --split 0.8,0.1,0.1, or take more images")


def decode_rows(start, stop, files, images_path, crop, size):
    """Decode the files of rows start..stop into the array on disk at images_path; run by worker processes.

    Returns of each file the frame (width, height) and mode that it had, or what is wrong with it.
    """
    images = np.load(images_path, mmap_mode="r+")
    notes = []
    for row, file in zip(range(start, stop), files, strict=True):
        try:
            images[row], *note = read_photograph(file, crop, size)
        except DatasetError as error:
            note = str(error)
        notes.append(note)
    return notes


def decode_all(files, images_path, crop, size, workers):
    """Decode all files with worker processes; returns what `decode_rows` does, of all rows."""
    task = functools.partial(decode_rows, images_path=images_path, crop=crop, size=size)
    return [note for *_, notes in map_rows(task, len(files), workers, "decoding", items=files) for note in notes]


def check_damaged(damaged, count, skip):
    """Raise DatasetError if images cannot be used, unless they are to be skipped and others are left."""
    if not damaged:
        return
    first = damaged[0]
    if len(damaged) == count:
        raise DatasetError(f"{first}; none of {count:,} images can be used")
    if not skip:
        raise DatasetError(f"{first}; in all, {len(damaged):,} of {count:,} images cannot be used, and --skip-damaged "
                           "leaves them out")
    print(f"skipped {len(damaged):,} of {count:,} images that cannot be used, all named in dataset.json: {first}")


def span(texts):
    """The first and the last of some texts, or the one that both are."""
    first, *_, last = [*texts] * 2
    return first if first == last else f"{first} to {last}"


def tell(files, notes, crop, size, usual):
    """Print what became of the pictures, but of a frame only if it is not the usual one."""
    unusual = [frame for frame, _ in notes if frame != usual]
    if unusual:
        sizes = span(f"{width}x{height}" for width, height in sorted(unusual, key=math.prod))
        shares = span(f"{share:.0%}" for share in sorted(share_kept(*frame, crop) for frame in unusual))
        print(f"{len(unusual):,} images{f' are not {usual[0]}x{usual[1]} but' if usual else ':'} {sizes}; crop {crop} "
              f"keeps {shares} of the frame")
    boxes = [crop_box(*frame, crop) for frame, _ in notes]
    for what, which in (
        ("converted to RGB", [mode != "RGB" for _, mode in notes]),
        (f"enlarged to {size}x{size}", [min(right - left, bottom - top) < size for left, top, right, bottom in boxes]),
    ):
        if any(which):
            print(f"{what}: {sum(which):,} images, the first {files[which.index(True)]}")


def write_dataset(images, splits, attribute_names, attributes, *, source, out, size, crop, workers, overwrite,
                  skip_damaged, usual=None):
    """Write the prepared dataset of pictures into the folder `out`, and print what it has.

    images is {name: file}, splits are the names of train, validation and test, attributes is {name: one byte for each
    attribute}, and usual is the frame that needs no mention. Raises DatasetError; then nothing is left in `out`.
    """
    started = time.perf_counter()
    split_of = {name: split for split, names in enumerate(splits) for name in names}
    names = list(split_of)
    check_counts([len(part) for part in splits])
    with DatasetWriter(out, len(names), size, overwrite) as writer:
        notes = decode_all([images[name] for name in names], writer.images_path, crop, size, workers)
        check_damaged([note for note in notes if isinstance(note, str)], len(notes), skip_damaged)
        kept = [row for row, note in enumerate(notes) if not isinstance(note, str)]
        skipped = [name for name, note in zip(names, notes, strict=True) if isinstance(note, str)]
        if skipped:
            writer.keep(kept)
            names = [names[row] for row in kept]
        counts = np.bincount([split_of[name] for name in names], minlength=len(SPLITS)).tolist()
        check_counts(counts)
        tell([images[name] for name in names], [notes[row] for row in kept], crop, size, usual)
        values = np.frombuffer(b"".join(attributes.get(name, b"") for name in names), dtype=np.bool_)
        writer.finish(source=source, crop=crop, attributes=values.reshape(len(names), len(attribute_names)),
                      attribute_names=attribute_names, splits=dict(zip(SPLITS, counts, strict=True)), file_names=names,
                      info={"resampling": "bilinear, antialiased", "skipped": skipped})
    for split, count in zip(SPLITS, counts, strict=True):
        print(f"{split:10} {count:9,} images" + ("" if count else ": figures will come from validation images"))
    seconds = time.perf_counter() - started
    print(f"{'all':10} {len(names):9,} images in {seconds:.1f} s, {len(names) / seconds:,.0f} per second: {out}")
