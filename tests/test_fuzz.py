"""Whatever is done to the files that the programs read: they do their work, or name what is wrong in one line.

Hypothesis chooses the damage, the same each time: some hundred inputs, ten times as many with `pytest -m slow`, or as
many as a variable says: VAE_FUZZ=5000 pytest -m slow tests/test_fuzz.py
"""

import contextlib
import functools
import io
import json
import os
import tempfile
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_celeba import ALIGNED, KAGGLE, KAGGLE_LISTS, encode, map_here, patched, write, zipped

from data_tools import celeba, decoding, files
from vae_np import VAE
from vae_np.disk.dataset import Dataset
from vae_np.disk.sealed import seal
from vae_np.errors import VAEError
from vae_np.run import checkpoint
from vae_np.run.trainer import Trainer
from vae_np.train import Settings, batches

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
WORDS = ("", "0", "1", "-1", "2", "-0", "1.0", "9" * 5000, "nan", "000001.jpg", "000002.JPG", "../000001.jpg", ".jpg",
         "C:\\x.png", "/etc/passwd", "\0", "\n", "\r", "\x1b[2J", "\u2028", "\udc80", '"', ",", "١.jpg", "<a>", "Bald")


def damage(data, content, reach=None):
    """A copy of some bytes with one to four changes, all of them in the first `reach` bytes."""
    for _ in range(data.draw(st.integers(1, 4))):
        last = min(len(content), reach or len(content))
        start, end = sorted(data.draw(st.integers(0, last)) for _ in range(2))
        width = data.draw(st.sampled_from((1, 2, 4, 8)))
        number = data.draw(st.sampled_from(EXTREMES) | st.integers(0, 255)) % 256**width
        new = number.to_bytes(width, data.draw(st.sampled_from(("little", "big"))))
        content = {
            "overwrite": content[:start] + new + content[start + width :],
            "insert": content[:start] + new + content[start:],
            "cut off": content[:end],
            "cut out": content[:start] + content[end:],
            "repeat": content[:end] + content[start:],
        }[data.draw(st.sampled_from(("overwrite", "insert", "cut off", "cut out", "repeat")))]
    return content


def damage_text(data, text):
    """A copy of a text with words of it replaced by others, or with damage to its bytes; as bytes."""
    if data.draw(st.booleans()):
        return damage(data, text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        old = data.draw(st.sampled_from(text.replace(",", " ").split() or ["\n"]))
        text = text.replace(old, data.draw(st.sampled_from(WORDS)), data.draw(st.sampled_from((1, -1))))
    return text.encode("utf-8", "surrogatepass")


def prepare(data, folder):
    """Prepare a copy of CelebA: the dataset is whole."""
    archive, out = folder / "archive.zip", folder.parent / "out"
    try:
        celeba.prepare(archive if archive.is_file() else folder, out, size=8, skip_damaged=data.draw(st.booleans()))
    finally:
        if archive.is_file():  # of an archive that stays open, since another will have its name or its number
            files.open_once(str(archive)).close()
            files.open_once.cache_clear()
    Dataset(out).check_sums()
    assert sorted(os.listdir(folder.parent)) == ["out", "source"]


def use(data, folder):
    """Open a dataset and use it as lessons do."""
    dataset = Dataset(folder)
    repr(dataset)
    list(batches(dataset.split("train"), 2, np.arange(len(dataset.split("train")))))
    for attribute in dataset.attribute_names:
        dataset.column(attribute).mean()
    dataset.held_out()
    dataset.check_sums()


def resume(data, folder):
    """Go on with a training."""
    Trainer.resume(folder / "checkpoint.npz", *with_settings(trained()[0]))


def with_settings(dataset):
    """The arguments of a Trainer, after its model or the path of its checkpoint."""
    images = dataset.split("train"), dataset.split("validation")
    return *images, Settings(epochs=2, batch_size=8), dataset.description, 1


# Of an entry of a zip archive's directory: version, flags, method, checksum, both sizes, lengths of name, extra field
# and comment, and where the member is; as places and widths in bytes.
ENTRY_FIELDS = ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))


def zip_archive(data):
    files = dict(KAGGLE)
    where = data.draw(st.sampled_from(("names", "directory", "bytes")))
    if where == "names":
        name = data.draw(st.sampled_from([word for word in WORDS if word not in ("", "\udc80")]))
        files[data.draw(st.sampled_from(("", "a/", "../", "/", "\\"))) + name] = files.pop(f"{ALIGNED}/000002.jpg")
    content = zipped(files, data.draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))
    if where == "directory":
        place, width = data.draw(st.sampled_from(ENTRY_FIELDS))
        number = data.draw(st.sampled_from(EXTREMES) | st.integers(0, 5000)) % 256**width
        content = patched(place, number, content, width)
    if where == "bytes":
        content = damage(data, content)
    return {"archive.zip": content}


def image(data):
    kind = data.draw(st.sampled_from(("JPEG", "PNG")))
    mode = data.draw(st.sampled_from(("RGB", "L", "CMYK") if kind == "JPEG" else ("RGB", "1", "P", "RGBA", "I;16")))
    content = encode(Image.new(mode, data.draw(st.sampled_from(((178, 218), (148, 148), (147, 400), (1, 1))))), kind)
    return KAGGLE | {f"{ALIGNED}/000002.jpg": damage(data, content, data.draw(st.sampled_from((40, 700, None))))}


def text_list(data):
    name = data.draw(st.sampled_from(sorted(KAGGLE_LISTS)))
    return KAGGLE | {name: damage_text(data, KAGGLE_LISTS[name])}


@functools.cache
def dataset_files():
    """The files of a small prepared dataset: {name: content}."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_dataset(Path(folder) / "data", 1, 1, 1, size=8)
        return {path.name: path.read_bytes() for path in (Path(folder) / "data").iterdir()}


JSON_VALUES = (None, True, 0, -1, 3, 8.0, 10**400, float("nan"), "", "8", [], [[]], {}, {"train": 1}, ["a"] * 3, [1, 2])


def dataset_json(data):
    content = dataset_files()["dataset.json"].decode()
    if data.draw(st.booleans()):
        return dataset_files() | {"dataset.json": damage_text(data, content)}
    info = json.loads(content)
    place = data.draw(st.sampled_from((info, info["splits"], info["checksums"])))
    name = data.draw(st.sampled_from(sorted(place)))
    place[name] = data.draw(st.sampled_from(JSON_VALUES))
    if data.draw(st.booleans()):
        del place[name]
    return dataset_files() | {"dataset.json": json.dumps(info)}


DTYPES = ("|u1", "|b1", "<f4", "|O", "|V3", "<U99999", "<M8[D]", "", "x", [("a", "|u1")], [("a", "|u1", (2**40,))])
SHAPES = ((3, 8, 8, 3), (3, 2), (), (0,), (-1,), (3, 8, 8, -3), (2**62, 8, 8, 3), (2**64,), (3.0, 2), (True, 2), None)


def array(data):
    name = data.draw(st.sampled_from(("images.npy", "attributes.npy")))
    content = dataset_files()[name]
    if data.draw(st.booleans()):
        header = {"descr": data.draw(st.sampled_from(DTYPES)), "fortran_order": data.draw(st.booleans()),
                  "shape": data.draw(st.sampled_from(SHAPES))}  # fmt: skip
        text = repr(header).encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content[128:]
    else:
        content = damage(data, content, data.draw(st.sampled_from((12, 128, None))))
    return dataset_files() | {name: content}


@functools.cache
def trained():
    """A small dataset, and the arrays and info of a checkpoint in the middle of an epoch on it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = write_dataset(Path(folder) / "data", size=8)
        trainer = Trainer(VAE(8, (3,), 2), *with_settings(dataset))
        trainer.train_epoch()
        trainer.order, trainer.terms = np.arange(24), [[1.0, 1.0, 2.0, 3.0]]
        trainer.save(Path(folder) / "checkpoint.npz")
        return dataset, *checkpoint.load(Path(folder) / "checkpoint.npz")


def a_checkpoint(data):
    """Damaged bytes, or other contents with a checksum that is right."""
    _, arrays, info = trained()
    arrays, info = dict(arrays), json.loads(json.dumps(info))
    kind = data.draw(st.sampled_from(("bytes", "info", "array")))
    if kind == "info":
        place = data.draw(st.sampled_from([info, *(info[name] for name in ("model", "data", "random_state"))]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(st.sampled_from(JSON_VALUES))
    elif kind == "array":
        name = data.draw(st.sampled_from(sorted(arrays)))
        shape = data.draw(st.sampled_from(((), (0,), (3,), (24,), (2, 4), arrays[name].shape)))
        dtype = data.draw(st.sampled_from(("float32", "float64", "int64", "uint8", "bool", "complex64", "U3")))
        with np.errstate(invalid="ignore"):
            arrays[name] = np.full(shape, data.draw(st.sampled_from((0, -1, 25, np.nan, 1e30)))).astype(dtype)
    content = seal({"info": np.array(json.dumps(info)), **arrays})
    return {"checkpoint.npz": damage(data, content) if kind == "bytes" else content}


# For each kind of input what makes a damaged one, and what reads it.
KINDS = {"zip archive": (zip_archive, prepare), "image": (image, prepare), "list": (text_list, prepare),
         "dataset.json": (dataset_json, use), "array": (array, use), "checkpoint": (a_checkpoint, resume)}
MANY = pytest.param(int(os.environ.get("VAE_FUZZ", 2400)), marks=pytest.mark.slow)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inputs", [240, MANY])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_used_or_refused(monkeypatch, kind, inputs):
    make, read = KINDS[kind]
    monkeypatch.setattr(decoding, "map_rows", map_here)

    # The deadline is for what unpacks or searches without end; the machine may be slow.
    @settings(max_examples=max(1, inputs // len(KINDS)), derandomize=True, database=None,
              suppress_health_check=list(HealthCheck), deadline=timedelta(seconds=10))
    @given(st.data())
    def damaged(data):
        with tempfile.TemporaryDirectory() as room, contextlib.redirect_stdout(io.StringIO()):
            folder = write(Path(room) / "source", make(data))
            before = contents(folder)
            try:
                read(data, folder)
            except VAEError as error:
                assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
                assert os.listdir(room) == ["source"]
            assert contents(folder) == before

    damaged()
