"""The prepared dataset on disk. A folder made by `data_tools` holds

    images.npy        uint8 (N, S, S, 3), in the order train, validation, test
    attributes.npy    bool (N, A), and with toy faces factors.npy, float32 (N, F)
    dataset.json      how many images each split has, names of attributes, factors and files, source, size, crop,
                      checksums, and the names of damaged images that were skipped
"""

import errno
import hashlib
import json
from pathlib import Path

import numpy as np

from vae_np.errors import DatasetError

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")


class Dataset:
    """A prepared dataset, opened for reading. Raises DatasetError unless it is whole and its files fit together.

    images       uint8 (N, S, S, 3), a memmap, so that 202,599 images need no memory of their own
    attributes   bool (N, A), a memmap, its columns named by attribute_names
    splits       {"train": slice, "validation": slice, "test": slice}; a split may be empty
    fingerprint  the checksum of the pixels: two datasets with the same one train alike
    description  what a checkpoint remembers of the data that it was trained on
    info         everything that dataset.json says
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.info = info = read_info(self.folder)
        self.image_size, self.attribute_names = info["size"], info["attribute_names"]
        ends = np.cumsum([0, *(info["splits"][name] for name in SPLITS)]).tolist()
        self.splits = dict(zip(SPLITS, map(slice, ends, ends[1:]), strict=True))
        self.images = self.open("images", (ends[-1], self.image_size, self.image_size, 3), np.uint8)
        self.attributes = self.open("attributes", (ends[-1], len(self.attribute_names)), np.bool_)
        self.fingerprint = info["checksums"]["images.npy"]
        self.description = {"folder": str(self.folder.resolve()), "fingerprint": self.fingerprint,
                            "source": info["source"], "size": self.image_size, "crop": info["crop"]}  # fmt: skip

    def open(self, name, shape, dtype):
        """A memmap of one of the files, name.npy. Raises DatasetError unless it has this shape and dtype."""
        path = self.folder / f"{name}.npy"
        try:
            array = memmap(path)
        except Exception as error:  # NumPy has many kinds of its own for a damaged file
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise DatasetError(f"{path} cannot be opened ({error.strerror or error}); if nothing else helps, copy "
                                   "the dataset to another disk") from None
            reason = " ".join(str(error).split())  # some have several lines
            raise DatasetError(f"{path} is missing or damaged ({reason}); prepare the dataset again") from None
        if array.shape != shape or array.dtype != dtype:
            raise DatasetError(f"{path} holds {array.dtype} {array.shape} where dataset.json promises "
                               f"{np.dtype(dtype)} {shape}; prepare the dataset again")
        if path.stat().st_size != array.offset + array.nbytes:
            raise DatasetError(f"{path} is damaged (longer than its {shape} need); prepare the dataset again")
        return array

    def check_sums(self):
        """Raise DatasetError unless all files have the checksums that dataset.json says."""
        for name, digest in self.info["checksums"].items():
            path = self.folder / Path(name).name
            if not path.is_file() or checksum(path) != digest:
                raise DatasetError(f"{path} is missing or damaged (its checksum is another); prepare the dataset again")

    def __len__(self):
        return len(self.images)

    def __repr__(self):
        counts = ", ".join(f"{len(self.split(name)):,} {name}" for name in SPLITS)
        return "Dataset({source}, {size}x{size}, crop {crop}: {counts})".format(**self.description, counts=counts)

    def split(self, name, limit=None):
        """The uint8 images of a split, at most the first `limit`, as a view of the memmap."""
        return self.images[self.splits[name]][:limit]

    def held_out(self):
        """The split that final figures come from: test or else validation. Raises DatasetError if both are empty."""
        for name in ("test", "validation"):
            if len(self.split(name)):
                return name
        raise DatasetError(f"{self.folder} has neither test nor validation images; prepare one that has, "
                           "since figures on training images would say nothing about new faces")

    def column(self, attribute):
        """The bool values (N,) of one attribute, by its name."""
        if attribute not in self.attribute_names:
            known = ", ".join(self.attribute_names) or "none"
            raise DatasetError(f"{self.folder} has no attribute {attribute!r}; it has {known}")
        return self.attributes[:, self.attribute_names.index(attribute)]


def memmap(path):
    """The array of a .npy file as a memmap that is only read."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # unlike np.load, it opens no zip archive
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    array = np.lib.format.open_memmap(path, mode="c")  # some file systems (FUSE) map a file for one program only
    array.flags.writeable = False
    return array


def read_info(folder):
    """What dataset.json says. Raises DatasetError unless it has all that is looked up later, in the right form."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(f"{folder} holds no prepared dataset (no dataset.json); make one with "
                           "python -m data_tools.celeba, data_tools.pictures or data_tools.toy_faces")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["format_version"] != FORMAT_VERSION:
            raise DatasetError(f"{path} has format version {info['format_version']!r}, this program reads "
                               f"{FORMAT_VERSION}; prepare the dataset again")
        check_info(info)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); prepare the dataset again") from None
    return info


def check_info(info):
    """Raise ValueError, KeyError, TypeError or AttributeError unless later code can rely on what dataset.json says."""
    counts, checksums = [info["splits"][name] for name in SPLITS], info["checksums"]
    # Types are compared, since an isinstance of int would take true and false for 1 and 0.
    for name, kinds in (("source", {str}), ("size", {int}), ("crop", {int, str})):
        if type(info[name]) not in kinds:
            raise ValueError(f"{name} {info[name]!r}")
    lists = {"factor_names": [], **info, "checksums": [checksums["images.npy"], *checksums.values()]}
    for name in ("attribute_names", "file_names", "factor_names", "checksums"):
        if type(lists[name]) is not list or not set(map(type, lists[name])) <= {str}:
            raise ValueError(f"{name} is no list of strings")
    if set(map(type, counts)) != {int} or min(counts) < 0 or sum(counts) != len(info["file_names"]):
        raise ValueError(f"splits {counts}: {sum(counts)} images and {len(info['file_names'])} file names")


def checksum(path):
    """The SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
