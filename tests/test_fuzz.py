"""Whatever is done to the files that the programs read: they do their work, or name what is wrong in one line.

Each kind of input has a function in KINDS that makes one damaged input in a folder and reads it; hypothesis chooses the
damage. The same inputs are tried each time, some hundred in all, or as many as the variable VAE_FUZZ says:

    VAE_FUZZ=5000 pytest tests/test_fuzz.py
"""

import contextlib
import functools
import io
import json
import os
import tempfile
import warnings
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools import celeba, celeba_source
from vae_np import VAE
from vae_np.disk.dataset import Dataset, batches
from vae_np.errors import VAEError
from vae_np.run import checkpoint
from vae_np.run.trainer import Epoch, Settings, Trainer

INPUTS = int(os.environ.get("VAE_FUZZ", 210))
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
WORDS = ("", "0", "1", "-1", "2", "-0", "1.0", "9" * 5000, "nan", "000001.jpg", "000002.JPG", "../000001.jpg", ".jpg",
         "C:\\x.png", "/etc/passwd", "\0", "\n", "\r", "\x1b[2J", "\u2028", "\udc80", '"', ",", "١.jpg", "<a>", "Bald")


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Decode in this process, since starting workers takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(celeba, "map_rows", lambda task, count, *_, items: [(0, count, task(0, count, items))])
        yield


# --- damage ----------------------------------------------------------------------------------------------------------


def damage(data, content, reach=None):
    """A copy of some bytes with one to four changes, all of them in the first `reach` bytes."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        last = min(len(content), reach or len(content))
        start, end = sorted(data.draw(st.integers(0, last)) for _ in range(2))
        change = data.draw(st.sampled_from(("flip", "overwrite", "cut off", "cut out", "insert", "repeat", "move")))
        if change == "flip" and start < len(content):
            content[start] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "overwrite":
            width = data.draw(st.sampled_from((1, 2, 4, 8)))
            number = data.draw(st.sampled_from(EXTREMES)) % 256**width
            content[start : start + width] = number.to_bytes(width, data.draw(st.sampled_from(("little", "big"))))
        elif change == "cut off":
            del content[end:]
        elif change == "cut out":
            del content[start:end]
        elif change == "insert":
            content[start:start] = data.draw(st.binary(max_size=20))
        elif change == "repeat":
            content[end:end] = content[start:end]
        elif change == "move":
            content[end:end], content[start:end] = content[start:end], b""
    return bytes(content)


def damage_text(data, text):
    """A copy of a text with words of it replaced by others, or with damage to its bytes; as bytes."""
    if data.draw(st.booleans()):
        return damage(data, text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        old = data.draw(st.sampled_from(text.replace(",", " ").split() or ["\n"]))
        text = text.replace(old, data.draw(st.sampled_from(WORDS)), data.draw(st.sampled_from((1, -1))))
    return text.encode("utf-8", "surrogatepass")


# --- what must hold --------------------------------------------------------------------------------------------------


def files_below(folder, but):
    """All files below a folder with their content, but those below another folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and but not in path.parents}


def attempt(action):
    """Call action(); its result, or None if it ended with one of the project's own errors, in one line."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return action()
    except VAEError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
        return None


def try_to_prepare(data, source):
    """Prepare source / "archive.zip", or the folder: the dataset is whole or not there, and no other file changes."""
    archive = source / "archive.zip"
    out = source.parent / "out"
    before = files_below(source.parent, but=out)
    options = {"size": 8, "skip_damaged": data.draw(st.booleans())}
    attempt(lambda: celeba.prepare(archive if archive.is_file() else source, out, **options))
    if archive.is_file():
        close(str(archive))
    assert files_below(source.parent, but=out) == before
    assert sorted(path.name for path in source.parent.iterdir()) in (["out", "source"], ["source"])
    if out.exists():
        Dataset(out).check_sums()


def close(archive):
    """Close the archive that this process keeps open, since another will have its name or its number."""
    celeba_source.open_once(archive).close()
    celeba_source.open_once.cache_clear()


def try_to_open(folder):
    """Open a dataset and use it as lessons do."""
    before = files_below(folder, but=None)
    dataset = attempt(lambda: Dataset(folder))
    if dataset is not None:
        repr(dataset)
        list(batches(dataset.split("train"), 2))
        attempt(dataset.held_out)
        attempt(dataset.check_sums)
        for name in dataset.attribute_names:
            dataset.column(name).mean()
    assert files_below(folder, but=None) == before


# --- the kinds -------------------------------------------------------------------------------------------------------


def encode(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PHOTOS = {f"{i + 1:06}.jpg": encode(Image.new("RGB", (178, 218), (80 * i, 90, 200)), "JPEG") for i in range(3)}
LISTS = {
    "list_attr_celeba.csv": "image_id,Bald,Smiling\r\n000001.jpg,1,-1\r\n000002.jpg,-1,-1\r\n000003.jpg,1,1\r\n",
    "list_eval_partition.csv": "image_id,partition\r\n000001.jpg,0\r\n000002.jpg,1\r\n000003.jpg,2\r\n",
}


def zip_of(files, compression):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


# Of an entry of a zip archive's directory: version, flags, method, checksum, both sizes, lengths of name, extra field
# and comment, and where the member is; as places and widths in bytes.
ENTRY_FIELDS = ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))


def damage_directory(data, content):
    """A zip archive with one field of one entry of its directory overwritten."""
    content = bytearray(content)
    entry = content.index(b"PK\1\2")
    for _ in range(data.draw(st.integers(0, len(PHOTOS)))):
        entry = content.index(b"PK\1\2", entry + 4)
    place, width = data.draw(st.sampled_from(ENTRY_FIELDS))
    number = data.draw(st.one_of(st.sampled_from(EXTREMES), st.integers(0, 5000))) % 256**width
    content[entry + place : entry + place + width] = number.to_bytes(width, "little")
    return bytes(content)


def zip_archive(data, folder):
    files = [(f"img_align_celeba/{name}", content) for name, content in PHOTOS.items()] + list(LISTS.items())
    where = data.draw(st.sampled_from(("names", "directory", "bytes")))
    if where == "names":
        row = data.draw(st.integers(0, len(files) - 1))
        name = data.draw(st.sampled_from([word for word in WORDS if word != "\udc80"])) or files[row - 1][0]
        files[row] = (data.draw(st.sampled_from(("", "a/", "../", "/", "\\"))) + name, files[row][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of names that are there twice
        content = zip_of(files, data.draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))
    if where == "directory":
        content = damage_directory(data, content)
    if where == "bytes":
        content = damage(data, content)
    (folder / "source").mkdir()
    (folder / "source" / "archive.zip").write_bytes(content)
    try_to_prepare(data, folder / "source")


def unpacked(data, folder, name, content):
    """A folder as Kaggle's archive unpacks to, with one file in it replaced."""
    for file, original in (PHOTOS | LISTS | {name: content}).items():
        path = folder / "source" / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(original.encode() if isinstance(original, str) else original)
    try_to_prepare(data, folder / "source")


def image(data, folder):
    mode = data.draw(st.sampled_from(("RGB", "L", "CMYK", "1", "P", "RGBA", "I;16")))
    kinds = {"CMYK": ("JPEG",), "RGB": ("JPEG", "PNG"), "L": ("JPEG", "PNG")}.get(mode, ("PNG",))
    size = data.draw(st.sampled_from(((178, 218), (148, 148), (147, 400), (1, 1))))
    content = encode(Image.new(mode, size), data.draw(st.sampled_from(kinds)))
    unpacked(data, folder, "000002.jpg", damage(data, content, data.draw(st.sampled_from((40, 700, None)))))


def text_list(data, folder, name):
    unpacked(data, folder, name, damage_text(data, LISTS[name]))


@functools.cache
def dataset_files():
    """The files of a small prepared dataset: {name: content}."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source = Path(folder) / "source"
        source.mkdir()
        for name, content in (PHOTOS | LISTS).items():
            (source / name).write_bytes(content.encode() if isinstance(content, str) else content)
        celeba.prepare(source, Path(folder) / "out", size=8)
        return {path.name: path.read_bytes() for path in (Path(folder) / "out").iterdir()}


def open_with(folder, name, content):
    """Open the dataset with one of its files replaced."""
    (folder / "data").mkdir()
    for file, original in (dataset_files() | {name: content}).items():
        (folder / "data" / file).write_bytes(original)
    try_to_open(folder / "data")


JSON_VALUES = (None, True, 0, -1, 3, 8.0, 10**400, float("nan"), "", "8", [], [[]], {}, {"train": 1}, ["a"] * 3, [1, 2])


def dataset_json(data, folder):
    content = dataset_files()["dataset.json"].decode()
    if data.draw(st.booleans()):
        info = json.loads(content)
        place = data.draw(st.sampled_from((info, info["splits"], info["checksums"])))
        name = data.draw(st.sampled_from(sorted(place)))
        if data.draw(st.booleans()):
            place[name] = data.draw(st.sampled_from(JSON_VALUES))
        else:
            del place[name]
        changed = json.dumps(info).encode()
    else:
        changed = damage_text(data, content)
    open_with(folder, "dataset.json", changed)


DTYPES = ("|u1", "|b1", "<f4", "|O", "|V3", "<U99999", "<M8[D]", "", "x", [("a", "|u1")], [("a", "|u1", (2**40,))])
SHAPES = ((3, 8, 8, 3), (3, 2), (), (0,), (-1,), (3, 8, 8, -3), (2**62, 8, 8, 3), (2**64,), (3.0, 2), (True, 2), None)


def array(data, folder):
    name = data.draw(st.sampled_from(("images.npy", "attributes.npy")))
    content = dataset_files()[name]
    if data.draw(st.booleans()):
        header = {"descr": data.draw(st.sampled_from(DTYPES)), "fortran_order": data.draw(st.booleans()),
                  "shape": data.draw(st.sampled_from(SHAPES))}  # fmt: skip
        text = repr(header).encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content[128:]
    else:
        content = damage(data, content, data.draw(st.sampled_from((12, 128, None))))
    open_with(folder, name, content)


@functools.cache
def trained():
    """A small dataset, and the arrays and info of a checkpoint in the middle of an epoch on it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = write_dataset(Path(folder) / "data", size=8)
        trainer = Trainer(VAE(8, (3,), 2), dataset, Settings(epochs=2, batch_size=8), threads=1)
        trainer.train_epoch()
        trainer.current = Epoch(np.arange(24), [[1.0, 1.0, 2.0, 3.0]])
        trainer.save(Path(folder) / "checkpoint.npz")
        return dataset, *checkpoint.load(Path(folder) / "checkpoint.npz")


def a_checkpoint(data, folder):
    """Damaged bytes, or other contents with a checksum that is right."""
    dataset, arrays, info = trained()
    arrays, info, path = dict(arrays), json.loads(json.dumps(info)), folder / "checkpoint.npz"
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
    content = checkpoint.sealed({"info": np.array(json.dumps(info)), **arrays})
    path.write_bytes(damage(data, content) if kind == "bytes" else content)
    before = files_below(folder, but=None)
    attempt(lambda: Trainer.resume(path, dataset, Settings(epochs=2, batch_size=8), threads=1))
    assert files_below(folder, but=None) == before


KINDS = {
    "zip archive": zip_archive,
    "image": image,
    "attribute list": functools.partial(text_list, name="list_attr_celeba.csv"),
    "partition list": functools.partial(text_list, name="list_eval_partition.csv"),
    "dataset.json": dataset_json,
    "array": array,
    "checkpoint": a_checkpoint,
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_used_or_refused(kind):
    # The deadline is for what unpacks or searches without end; the machine may be slow.
    @settings(max_examples=max(1, INPUTS // len(KINDS)), derandomize=True, database=None,
              suppress_health_check=list(HealthCheck), deadline=timedelta(seconds=10))
    @given(st.data())
    def damaged(data):
        with tempfile.TemporaryDirectory() as folder:
            KINDS[kind](data, Path(folder))

    damaged()
