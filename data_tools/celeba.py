"""Turn any download of CelebA into a prepared dataset (see vae_np/disk/dataset.py).

    python -m data_tools.celeba archive.zip --out data/celeba64

SOURCE may be Kaggle's archive.zip, the official img_align_celeba.zip with its lists beside it, or a folder that either
was unpacked to. Each image, 178 wide and 218 high, is cut to its central square (148 pixels, as most recipes for CelebA
do; of images of another size, as much of the short side) and scaled to --size with an antialiased bilinear filter.
Results are comparable only between equal crops, so the dataset records its own.
"""

import re
import sys

import numpy as np

from data_tools.celeba_source import find_celeba, is_image
from data_tools.decoding import examine_all, parser_of, split_by_content, write_dataset
from data_tools.lists import match, read_attributes, read_partition
from vae_np.errors import DatasetError
from vae_np.run.command import POSITIVE, run

OFFICIAL_NAME = re.compile(r"([0-9]{6})\.(jpe?g|png)", re.IGNORECASE)
OFFICIAL_LAST = (162_770, 182_637, 202_599)  # the number of the last image of train, validation and test


def official_split(name):
    """The split that CelebA's authors gave an image, by its number: 0 train, 1 validation, 2 test."""
    digits = OFFICIAL_NAME.fullmatch(name)
    number = int(digits[1]) if digits else 0
    if not 1 <= number <= OFFICIAL_LAST[-1]:
        raise DatasetError(f"there is no list_eval_partition.csv or .txt, and {name} is none of CelebA's file names "
                           "(000001.jpg to 202599.jpg); put the list beside the images, share them out anew with "
                           "--split 0.8,0.1,0.1, or prepare pictures of your own with data_tools.pictures")
    return int(np.searchsorted(OFFICIAL_LAST, number))


def split_names(download, shares, partial, workers):
    """The file names of each split, sorted: three lists, for train, validation and test."""
    images = sorted(download.images)
    if shares:
        examined = examine_all([download.images[name] for name in images], workers)
        splits = dict(zip(images, split_by_content([digest for digest, _ in examined], shares), strict=True))
    elif download.partition_list:
        rows = read_partition(download.partition_list, is_image)
        splits = match(rows, images, download.partition_list, partial)
        print(f"splits from {download.partition_list}")
    else:
        splits = {name: official_split(name) for name in images}
        print("no list_eval_partition.csv or .txt found: the official splits, by file number")
    return [[name for name in images if splits.get(name) == split] for split in range(3)]


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


def load_attributes(download, partial):
    """The attribute names, and {image's name: one byte for each}; without a list, there are none."""
    file = download.attribute_list
    if not file:
        print("no list_attr_celeba.csv or .txt found: the dataset has no attributes")
        return [], {}
    attribute_names, rows = read_attributes(file, {"1": 1, "-1": 0}, is_image)
    attributes = match(rows, download.images, file, partial)
    print(f"{len(attribute_names)} attributes from {file}")
    return attribute_names, attributes


def prepare(source, out, size=64, crop=148, limit=None, split=None, partial=False, workers=1, overwrite=False,
            skip_damaged=False):
    """Write the prepared dataset of a CelebA download into the folder `out`, and print what it has.

    Raises DatasetError, with a message of one line; then nothing is left in `out`.
    """
    download = find_celeba(source)
    attribute_names, attributes = load_attributes(download, partial)
    if attribute_names:
        download.images = {name: download.images[name] for name in attributes}
    names = split_names(download, split, partial, workers)
    counts = share(limit, [len(part) for part in names])
    names = [part[:count] for part, count in zip(names, counts, strict=True)]
    write_dataset(download.images, names, attribute_names, attributes, source="CelebA", usual=(178, 218), out=out,
                  size=size, crop=crop, workers=workers, overwrite=overwrite, skip_damaged=skip_damaged)


def parse_arguments(arguments):
    """The options of the command, as `prepare` takes them. Wrong usage ends the program with status 2."""
    parser = parser_of("python -m data_tools.celeba", __doc__, crop=148)
    parser.add_argument("source", metavar="SOURCE", help="a zip archive of CelebA, or a folder")
    parser.add_argument("--limit", metavar="N", type=POSITIVE, help="keep N images, spread over the splits")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; return its exit status."""
    return run(prepare, **vars(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
