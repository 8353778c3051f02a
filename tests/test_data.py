import json

import numpy as np
import pytest

from data_tools.prepared import DatasetWriter
from vae_np.backend import to_cpu
from vae_np.disk.dataset import Dataset, batches, checksum, to_float
from vae_np.errors import DatasetError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
ATTRIBUTES = RNG.random((10, 2)) < 0.5


def write(folder, train=6, validation=3, test=1):
    with DatasetWriter(folder, count=10, size=8) as writer:
        np.load(writer.images_path, mmap_mode="r+")[...] = IMAGES
        writer.finish(source="noise", crop="none", attributes=ATTRIBUTES, attribute_names=["Bald", "Smiling"],
                      splits={"train": train, "validation": validation, "test": test},
                      file_names=[f"{i}.png" for i in range(10)])
    return folder


def edit_info(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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


def test_images_are_a_memmap_that_nobody_can_write_to(tmp_path):
    data = Dataset(write(tmp_path / "data"))
    assert isinstance(data.split("train"), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


def test_unknown_attribute_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DatasetError, match=r"no attribute 'Hat'; it has Bald, Smiling"):
        Dataset(write(tmp_path / "data")).column("Hat")


def remove_info(folder):
    (folder / "dataset.json").unlink()


def break_info(folder):
    (folder / "dataset.json").write_text('{"size": 8')


def newer_format(folder):
    edit_info(folder, format_version=2)


def remove_images(folder):
    (folder / "images.npy").unlink()


def cut_images(folder):
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:-1])


def float_images(folder):
    np.save(folder / "images.npy", IMAGES.astype(np.float32))


def fewer_images(folder):
    np.save(folder / "images.npy", IMAGES[:9])


def other_size(folder):
    edit_info(folder, size=16)


def fewer_attributes(folder):
    np.save(folder / "attributes.npy", ATTRIBUTES[:, :1])


def pickled_attributes(folder):
    np.save(folder / "attributes.npy", ATTRIBUTES.astype(object))


def longer_images(folder):
    with open(folder / "images.npy", "ab") as file:
        file.write(b"more")


def zip_as_images(folder):
    np.savez(folder / "images.npz", images=IMAGES)
    (folder / "images.npz").replace(folder / "images.npy")


def long_header(folder):
    """NumPy's message about it has two lines."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10, 8, 8, 3), }".ljust(20_000) + b"\n"
    (folder / "images.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + IMAGES.tobytes())


def fewer_names(folder):
    edit_info(folder, file_names=["0.png"])


def names_that_are_numbers(folder):
    edit_info(folder, file_names=list(range(10)))


def true_for_one(folder):
    edit_info(folder, splits={"train": 6, "validation": 3, "test": True})


def negative_split(folder):
    edit_info(folder, splits={"train": 14, "validation": -4, "test": 0})


def size_as_text(folder):
    edit_info(folder, size="8")


def list_of_checksums(folder):
    edit_info(folder, checksums=["images.npy"])


def nested_without_end(folder):
    (folder / "dataset.json").write_text("[" * 200_000)


def not_utf_8(folder):
    (folder / "dataset.json").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(("damage", "named"), [
    (longer_images, "images.npy is damaged"),
    (zip_as_images, "images.npy is missing or damaged"),
    (long_header, "images.npy is missing or damaged .*max_header_size"),
    (fewer_names, "dataset.json is damaged .*10 images and 1 file names"),
    (names_that_are_numbers, "dataset.json is damaged .*file_names is no list of strings"),
    (true_for_one, "dataset.json is damaged .*splits"),
    (negative_split, "dataset.json is damaged .*splits"),
    (size_as_text, "dataset.json is damaged .*size '8'"),
    (list_of_checksums, "dataset.json is damaged"),
    (nested_without_end, "dataset.json is damaged"),
    (not_utf_8, "dataset.json is damaged"),
    (remove_info, "no dataset.json"),
    (break_info, "dataset.json is damaged"),
    (newer_format, "dataset.json has format version 2"),
    (remove_images, "images.npy is missing"),
    (cut_images, "images.npy is missing or damaged"),
    (float_images, "images.npy holds float32"),
    (fewer_images, r"images.npy holds uint8 \(9, 8, 8, 3\) where dataset.json promises uint8 \(10, 8, 8, 3\)"),
    (other_size, r"images.npy holds uint8 \(10, 8, 8, 3\)"),
    (fewer_attributes, r"attributes.npy holds bool \(10, 1\)"),
    (pickled_attributes, "attributes.npy is missing or damaged"),
])
def test_a_dataset_that_does_not_fit_is_refused(tmp_path, damage, named):
    folder = write(tmp_path / "data")
    damage(folder)
    with pytest.raises(DatasetError, match=named) as error:
        Dataset(folder)
    assert str(folder) in str(error.value)
    assert "prepare the dataset again" in str(error.value) or "make one with" in str(error.value)
    assert "\n" not in str(error.value)


def test_check_sums_sees_what_opening_does_not(tmp_path):
    data = Dataset(write(tmp_path / "data"))
    data.check_sums()
    content = bytearray((tmp_path / "data" / "images.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "data" / "images.npy").write_bytes(content)
    with pytest.raises(DatasetError, match=r"images.npy is missing or damaged .* prepare the dataset again"):
        Dataset(tmp_path / "data").check_sums()


@pytest.mark.parametrize(("splits", "name"), [((6, 3, 1), "test"), ((6, 4, 0), "validation"), ((0, 0, 10), "test")])
def test_held_out_is_test_or_else_validation(tmp_path, splits, name):
    assert Dataset(write(tmp_path / "data", *splits)).held_out() == name


def test_held_out_is_never_train(tmp_path):
    with pytest.raises(DatasetError, match="neither test nor validation"):
        Dataset(write(tmp_path / "data", 10, 0, 0)).held_out()


def test_to_float_maps_bytes_to_0_to_1():
    every_byte = np.arange(256, dtype=np.uint8)
    floats = to_float(every_byte)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (0, 1)
    np.testing.assert_array_equal(np.rint(floats * 255).astype(np.uint8), every_byte)


@pytest.mark.parametrize("order", [None, RNG.permutation(10)], ids=["as they stand", "shuffled"])
def test_batches_have_every_image_once(order):
    found = [to_cpu(batch) for batch in batches(IMAGES, 4, order)]
    assert [len(batch) for batch in found] == [4, 4, 2]
    found = sorted(image.tobytes() for image in np.concatenate(found))
    assert found == sorted(image.tobytes() for image in to_float(IMAGES))


def test_batches_follow_the_order():
    order = np.array([9, 0, 5, 3])
    first, second = (to_cpu(batch) for batch in batches(IMAGES, 2, order))
    np.testing.assert_array_equal(first, to_float(IMAGES[[0, 9]]))
    np.testing.assert_array_equal(second, to_float(IMAGES[[3, 5]]))
