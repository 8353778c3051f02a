"""The prepared dataset on disk: uint8 images in a memmap, attributes, splits, and shuffled float32 batches.

A folder made by `data_tools` holds

    images.npy        uint8 (N, S, S, 3), opened as a memmap, so that 202,599 images need no memory of their own
    attributes.npy    bool (N, A)
    dataset.json      attribute names, how many images each split has, file names, crop, size, checksums, and the names
                      of damaged images that were skipped

The images stand in the order train, validation, test: each split is one slice.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from vae_np.backend import free_memory, to_device, xp
from vae_np.errors import DatasetError

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")


class Dataset:
    """A prepared dataset, opened for reading.

    images      uint8 memmap (N, S, S, 3)
    attributes  bool memmap (N, A), its columns named by attribute_names
    splits      {"train": slice, "validation": slice, "test": slice}; a split may be empty
    fingerprint the checksum of the pixels: two datasets with the same one train alike
    info        everything that dataset.json says

    Raises DatasetError if the folder has no dataset, or one whose files do not fit its dataset.json.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.info = self._read_info()
        self.images = self._load("images")
        self.attributes = self._load("attributes")
        self._check_shapes()

    def _read_info(self):
        path = self.folder / "dataset.json"
        if not path.is_file():
            raise DatasetError(f"{self.folder} holds no prepared dataset (no dataset.json); make one with "
                               "python -m data_tools.toy_faces or python -m data_tools.celeba")
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            version = info["format_version"]
            if version == FORMAT_VERSION:
                self._use(info)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(f"{path} is damaged ({error!r}); prepare the dataset again") from None
        if version != FORMAT_VERSION:
            raise DatasetError(f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; "
                               "prepare the dataset again")
        return info

    def _use(self, info):
        # Whatever later code relies on is looked up here, so that a damaged dataset.json shows at once.
        self.attribute_names = strings(info["attribute_names"], "attribute_names")
        strings(info["file_names"], "file_names")
        strings(list(info["checksums"].values()), "checksums")
        self.image_size = info["size"]
        self.fingerprint = info["checksums"]["images.npy"]
        # What a checkpoint remembers of the data that it was trained on.
        self.description = {"folder": str(self.folder.resolve()), "fingerprint": self.fingerprint,
                            "source": info["source"], "size": self.image_size, "crop": info["crop"]}  # fmt: skip
        counts = [info["splits"][name] for name in SPLITS]
        # type() where isinstance() would take true and false for 1 and 0.
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"splits of {counts} images")
        if type(self.image_size) is not int or type(info["crop"]) not in (int, str) or type(info["source"]) is not str:
            raise ValueError(f"size {self.image_size!r}, crop {info['crop']!r}, source {info['source']!r}")
        if sum(counts) != len(info["file_names"]):
            raise ValueError(f"{sum(counts)} images and {len(info['file_names'])} file names")
        ends = np.cumsum([0, *counts]).tolist()
        self.splits = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(SPLITS)}

    def _load(self, name):
        path = self.folder / f"{name}.npy"
        try:
            # Not np.load, which would open a zip archive, too.
            return np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # NumPy has many kinds of its own for a damaged file
            reason = " ".join(str(error).split())  # some have several lines
            raise DatasetError(f"{path} is missing or damaged ({reason}); prepare the dataset again") from None

    def _check_shapes(self):
        size, count = self.image_size, self.splits[SPLITS[-1]].stop
        for array, shape, dtype, name in (
            (self.images, (count, size, size, 3), np.uint8, "images.npy"),
            (self.attributes, (count, len(self.attribute_names)), np.bool_, "attributes.npy"),
        ):
            path = self.folder / name
            if array.shape != shape or array.dtype != dtype:
                raise DatasetError(f"{path} holds {array.dtype} {array.shape} where dataset.json promises "
                                   f"{np.dtype(dtype)} {shape}; prepare the dataset again")
            if path.stat().st_size != array.offset + array.nbytes:
                raise DatasetError(f"{path} is damaged (longer than its {shape} need); prepare the dataset again")

    def check_sums(self):
        """Read all files and compare them with their checksums in dataset.json. Raises DatasetError."""
        for name, digest in self.info["checksums"].items():
            path = self.folder / Path(name).name
            if not path.is_file() or checksum(path) != digest:
                raise DatasetError(f"{path} is missing or damaged (its checksum is another); prepare the dataset again")

    def __len__(self):
        return len(self.images)

    def __repr__(self):
        counts = ", ".join(f"{part.stop - part.start:,} {name}" for name, part in self.splits.items())
        size = self.image_size
        return f"Dataset({self.info['source']}, {size}x{size}, crop {self.info['crop']}: {counts})"

    def split(self, name, limit=None):
        """The uint8 images of a split, at most the first `limit`, as a view of the memmap."""
        return self.images[self.splits[name]][:limit]

    def held_out(self):
        """The name of the split that final figures come from: the test split, or validation where there is none.

        Samples of CelebA often come without test images. Raises DatasetError if both are empty, since figures on
        training images would say nothing about new faces.
        """
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


def strings(values, name):
    """values, if they are a list of strings. Raises ValueError, with the name."""
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{name} is no list of strings")
    return values


def to_float(images):
    """uint8 (N, H, W, 3) in 0..255 -> float32 in [0, 1], the range that the model and the losses expect."""
    return images * np.float32(1 / 255)


def kept_on_device(images):
    """uint8 images moved to a GPU's memory, if they take at most half of what is free there; otherwise as they are.

    All of CelebA at 64x64 is 2.5 GB. On a CPU images stay on disk, which the system's cache makes fast enough.
    """
    if 2 * images.nbytes > free_memory():
        return images
    kept = xp.empty(images.shape, images.dtype)
    for start in range(0, len(images), 4096):  # all at once would take as much of the host's memory, and keep it
        kept[start : start + 4096] = to_device(np.asarray(images[start : start + 4096]))
    return kept


def batches(images, batch_size, order=None):
    """Yield float32 batches (B, H, W, 3), on the device, of uint8 images in the given order; the last may be smaller.

    images are on the host or on the device. order is an array of indices on the host, such as
    rng.permutation(len(images)); None means as they stand.
    """
    order = np.arange(len(images)) if order is None else order
    for start in range(0, len(order), batch_size):
        # Sorted indices read a memmap from front to back; the order inside a batch does not change its loss.
        rows = np.sort(order[start : start + batch_size])
        on_device = isinstance(images, xp.ndarray)
        yield to_float(images[to_device(rows)] if on_device else to_device(images[rows]))


def checksum(path):
    """The SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
