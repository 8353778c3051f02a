import errno
import json
import mmap

import numpy as np
import pytest

from data_tools.prepared import DatasetWriter
from vae_np.disk.dataset import Dataset, checksum
from vae_np.errors import DatasetError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
ATTRIBUTES = RNG.random((10, 2)) < 0.5
FACTORS = RNG.random((10, 3))


def fill(writer, splits=(6, 3, 1), images=IMAGES):
    """Write what a DatasetWriter of 10 images expects."""
    np.load(writer.images_path, mmap_mode="r+")[...] = images
    writer.finish(source="noise", crop="none", attributes=ATTRIBUTES, attribute_names=["Bald", "Smiling"],
                  splits=dict(zip(("train", "validation", "test"), splits, strict=True)),
                  file_names=[f"{i}.png" for i in range(10)], arrays={"factors": FACTORS}, info={"seed": 3})


def write(folder, overwrite=False, **content):
    with DatasetWriter(folder, count=10, size=8, overwrite=overwrite) as writer:
        fill(writer, **content)
    return folder


def test_opened_dataset_has_what_was_written(tmp_path):
    data = Dataset(write(tmp_path / "data"))
    np.testing.assert_array_equal(data.images, IMAGES)
    np.testing.assert_array_equal(data.attributes, ATTRIBUTES)
    assert data.splits == {"train": slice(0, 6), "validation": slice(6, 9), "test": slice(9, 10)}
    np.testing.assert_array_equal(data.split("validation"), IMAGES[6:9])
    np.testing.assert_array_equal(data.split("train", limit=2), IMAGES[:2])
    np.testing.assert_array_equal(data.column("Smiling"), ATTRIBUTES[:, 1])
    assert (len(data), data.image_size, data.info["file_names"][3]) == (10, 8, "3.png")
    assert data.fingerprint == checksum(tmp_path / "data" / "images.npy")
    assert repr(data) == "Dataset(noise, 8x8, crop none: 6 train, 3 validation, 1 test)"
    with pytest.raises(DatasetError, match=r"no attribute 'Hat'; it has Bald, Smiling"):
        data.column("Hat")
    assert isinstance(data.split("train"), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


def test_a_file_system_that_cannot_share_a_mapping_is_no_damage(tmp_path, monkeypatch):
    folder, original = write(tmp_path / "data"), mmap.mmap
    refused = [mmap.ACCESS_READ]

    def refusing(*args, access, **kwargs):
        if access in refused:
            raise OSError(errno.ENODEV, "No such device")  # as FUSE, which maps privately all the same
        return original(*args, access=access, **kwargs)

    monkeypatch.setattr(mmap, "mmap", refusing)
    data = Dataset(folder)
    np.testing.assert_array_equal(data.images, IMAGES)
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0
    refused.append(mmap.ACCESS_COPY)
    with pytest.raises(DatasetError, match=r"images.npy cannot be opened \(No such device\); .*copy the dataset to"):
        Dataset(folder)


def npy(header_length):
    """images.npy with a header of another length; NumPy's message about a long one has two lines."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10, 8, 8, 3), }".ljust(header_length) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + IMAGES.tobytes()


# What replaces a file: None for nothing, bytes, an array, or values of dataset.json.
DAMAGE = [
    ("dataset.json", None, "no dataset.json"),
    ("dataset.json", b'{"size": 8', "dataset.json is damaged"),
    ("dataset.json", b"[" * 200_000, "dataset.json is damaged"),
    ("dataset.json", {"format_version": 2}, "dataset.json has format version 2"),
    ("dataset.json", {"file_names": ["0.png"]}, "dataset.json is damaged .*10 images and 1 file names"),
    ("dataset.json", {"file_names": list(range(10))}, "dataset.json is damaged .*file_names is no list of strings"),
    ("dataset.json", {"splits": {"train": 6, "validation": 3, "test": True}}, "dataset.json is damaged .*splits"),
    ("dataset.json", {"splits": {"train": 14, "validation": -4, "test": 0}}, "dataset.json is damaged .*splits"),
    ("dataset.json", {"size": "8"}, "dataset.json is damaged .*size '8'"),
    ("dataset.json", {"size": 16}, r"images.npy holds uint8 \(10, 8, 8, 3\)"),
    ("dataset.json", {"checksums": ["images.npy"]}, "dataset.json is damaged"),
    ("images.npy", None, "images.npy is missing"),
    ("images.npy", npy(117)[:-1], "images.npy is missing or damaged"),
    ("images.npy", npy(117) + b"more", "images.npy is damaged"),
    ("images.npy", b"PK\5\6" + bytes(18), "images.npy is missing or damaged"),  # an empty zip archive
    ("images.npy", npy(20_000), "images.npy is missing or damaged .*max_header_size"),
    ("images.npy", IMAGES.astype(np.float32), "images.npy holds float32"),
    ("images.npy", IMAGES[:9], r"images.npy holds uint8 \(9, 8, 8, 3\) where .* promises uint8 \(10, 8, 8, 3\)"),
    ("attributes.npy", ATTRIBUTES[:, :1], r"attributes.npy holds bool \(10, 1\)"),
    ("attributes.npy", ATTRIBUTES.astype(object), "attributes.npy is missing or damaged"),
]


@pytest.mark.parametrize(("name", "content", "problem"), DAMAGE, ids=[problem for *_, problem in DAMAGE])
def test_a_dataset_that_does_not_fit_is_refused(tmp_path, name, content, problem):
    path = write(tmp_path / "data") / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    elif content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=problem) as error:
        Dataset(tmp_path / "data")
    assert str(tmp_path / "data") in str(error.value)
    assert "prepare the dataset again" in str(error.value) or "make one with" in str(error.value)
    assert "\n" not in str(error.value)


def test_held_out_is_test_or_else_validation_but_never_train(tmp_path):
    for splits, name in (((6, 3, 1), "test"), ((6, 4, 0), "validation"), ((0, 0, 10), "test")):
        assert Dataset(write(tmp_path / "data", overwrite=True, splits=splits)).held_out() == name
    with pytest.raises(DatasetError, match="neither test nor validation"):
        Dataset(write(tmp_path / "data", overwrite=True, splits=(10, 0, 0))).held_out()
