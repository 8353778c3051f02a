"""A folder of one's own pictures, of every kind at once, becomes a dataset."""

import io
import os
import subprocess
import sys
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image
from test_celeba import encode, map_here, write

from data_tools import decoding, pictures
from vae_np.disk.dataset import Dataset


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Decode in this process, since starting workers takes longer than all the rest."""
    monkeypatch.setattr(decoding, "map_rows", map_here)


def turned(image):
    """A JPEG of it that a telephone has taken lying on its side."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def shade(number, mode="RGB", size=(20, 30)):
    return Image.new("L", size, number).convert(mode)


# Each is grey, and of how grey it is one knows it again.
FILES = {
    "IMG_0001": encode(shade(10)),
    "IMG_0002.JPEG": turned(shade(20)),
    "2024/a b, c.png": encode(shade(30, "RGBA"), "PNG"),
    "2024/May/Zürich\u202f1.gif": encode(shade(40, "L"), "GIF"),
    "deep/er/and/deep/er/a.tif": encode(shade(50), "TIFF"),
    "2024/a.webp": encode(shade(60, size=(9, 9)), "WEBP"),
    "2023/a.webp": encode(shade(70, size=(300, 40)), "WEBP"),
    **{f"more/{number}.bmp": encode(shade(number), "BMP") for number in range(80, 240)},
}
NONE = {"notes.txt": "no picture", "a.csv": "a,b\n", ".thumbnails/a.jpg": encode(shade(9)), "2024/._a.webp": b"\0"}
GREY = np.array([*range(10, 80, 10), *range(80, 240)])
SHADE_OF = dict(zip(FILES, GREY.tolist(), strict=True))


def prepare(folder, out, *options, status=0):
    assert pictures.main([str(folder), "--out", str(out), "--size", "8", *map(str, options)]) == status
    return Dataset(out) if status == 0 else None


def check(data, names=FILES):
    """Check that a dataset has these pictures, each by its name."""
    assert sorted(data.info["file_names"]) == sorted(names)
    assert (data.info["source"], data.info["crop"]) == ("mine", "square")
    shades = np.array([SHADE_OF[name] for name in data.info["file_names"]])
    np.testing.assert_allclose(data.images, np.broadcast_to(shades[:, None, None, None], data.images.shape), atol=3)
    data.check_sums()


def split_of(data):
    names = data.info["file_names"]
    return {name: split for split, rows in data.splits.items() for name in names[rows]}


def test_pictures_of_every_kind_name_and_size_become_a_dataset(tmp_path, capsys):
    folder = write(tmp_path / "mine", FILES | NONE)
    if os.name == "posix":  # on Windows a right of its own
        (folder / "again").symlink_to(folder)
    check(prepare(folder, tmp_path / "out"))
    said = capsys.readouterr().out
    assert "passed over 2 files that are no pictures, the first " in said
    assert "167 images: 9x9 to 300x40; crop square keeps 13% to 100% of the frame\n" in said


def test_command_with_workers_says_which_are_enlarged(tmp_path):
    folder = write(tmp_path / "mine", FILES)
    command = [sys.executable, "-m", "data_tools.pictures", folder, "--out", tmp_path / "out", "--size", "16"]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert f"enlarged to 16x16: 1 images, the first {folder / '2024' / 'a.webp'}\n" in done.stdout
    check(Dataset(tmp_path / "out"))


def test_a_picture_stays_in_its_split_and_so_do_its_copies(tmp_path, capsys):
    folder = write(tmp_path / "mine", FILES)
    first = split_of(prepare(folder, tmp_path / "first"))
    assert set(first.values()) == {"train", "validation", "test"}
    copies = {f"copies/{number}": data for number, data in enumerate(FILES.values())}
    for path in list(FILES)[::3]:
        (folder / path).unlink()
    second = split_of(prepare(write(folder, copies), tmp_path / "second"))
    assert "111 pictures are copies of others, each in the split of its original\n" in capsys.readouterr().out
    assert {name: second[f"copies/{number}"] for number, name in enumerate(FILES)} == first
    assert {name: first[name] for name in second if name in first} == {
        name: split for name, split in second.items() if name in first}


def test_split_gives_each_its_share(tmp_path):
    data = prepare(write(tmp_path / "mine", FILES), tmp_path / "out", "--split", "50,50,0")
    assert data.info["splits"]["test"] == 0
    assert abs(data.info["splits"]["train"] - len(FILES) / 2) < 3 * (len(FILES) / 4) ** 0.5


@pytest.mark.parametrize(("name_of", "delimiter"), [
    (lambda path: path, ","), (lambda path: path.upper(), ";"),
    (lambda path: "C:\\My Photos\\" + path.replace("/", "\\"), "\t"),
    (lambda path: path if path.endswith(".webp") else PurePosixPath(path).stem, ","),
])
def test_attributes_come_from_a_list_with_names_as_people_write_them(tmp_path, name_of, delimiter):
    words = ("no", "Yes", "FALSE", "true", "-1", "1", "0")
    rows = [(name_of(path), words[n % 7], words[n % 2]) for n, path in enumerate(FILES)]
    text = "\n".join(delimiter.join(f'"{field}"' for field in row) for row in [("file", "Dark eyed", "Odd"), *rows])
    folder = write(tmp_path / "mine", FILES | {"attributes.csv": text})
    data = prepare(folder, tmp_path / "out", "--attributes", folder / "attributes.csv")
    check(data)
    assert data.attribute_names == ["Dark eyed", "Odd"]
    number = {name: n for n, name in enumerate(FILES)}
    numbers = np.array([number[name] for name in data.info["file_names"]])
    np.testing.assert_array_equal(data.column("Dark eyed"), numbers % 7 % 2 == 1)
    np.testing.assert_array_equal(data.column("Odd"), numbers % 2 == 1)


LISTED = "file,Odd\n" + "".join(f'"{path}",{n % 2}\n' for n, path in enumerate(FILES))
ERRORS = {
    "no folder": ({"mine": "x"}, [], "mine is no folder; give the one that has the pictures"),
    "no pictures": ({"mine/a.txt": "x"}, [], "mine has no pictures among 1 files"),
    "an empty folder": ({"mine/.hidden": ""}, [], "mine has no pictures among 0 files"),
    "few pictures": ({"mine/a.png": FILES["IMG_0001"]}, [], "of 1 images is for "),
    "damaged": ({"mine/more/99.bmp": FILES["more/99.bmp"][:-30]}, [],
                "in all, 1 of 167 images cannot be used, and --skip-damaged leaves them out"),
    "a telephone's format": ({"mine/a.HEIC": b"\0\0\0\x18ftypheic"}, [], "a.HEIC cannot be decoded (it is no picture"),
    "picture not listed": ({"a.csv": LISTED.replace('"IMG_0001",0\n', "")}, ["--attributes", "a.csv"],
                           "a.csv leaves out 1 of 167 images, the first IMG_0001; list those, or go on without them"),
    "listed twice": ({"a.csv": LISTED + "2024/A.webp,0"}, ["--attributes", "a.csv"], "a.csv lists 1"),
    "which one": ({"a.csv": LISTED.replace('"2023/a.webp",0\n', "").replace("2024/a", "a")}, ["--attributes", "a.csv"],
                  "a.csv lists 166 images, of which 1 are absent, the first a.webp; get those"),
    "no value": ({"a.csv": LISTED.replace('1",0', '1",maybe')}, ["--attributes", "a.csv"],
                 "a.csv, line 2: IMG_0001 has the value 'maybe', expected one of 1,"),
    "no list": ({}, ["--attributes", "a.csv"], "a.csv is missing or no ordinary file"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_clear_line_and_nothing_is_left(tmp_path, capsys, monkeypatch, case):
    files, options, words = ERRORS[case]
    mine = {} if case.endswith(("folder", "pictures")) else {f"mine/{path}": data for path, data in FILES.items()}
    write(tmp_path, mine | files)
    monkeypatch.chdir(tmp_path)
    prepare("mine", "out", *options, status=1)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error and "download" not in error, error
    assert not list(tmp_path.glob("*out*"))


def test_damaged_and_unlisted_pictures_are_left_out_if_asked_for(tmp_path):
    listed = LISTED.replace('"IMG_0001",0\n', "")
    folder = write(tmp_path / "mine", FILES | {"more/80.bmp": "no picture", "a.csv": listed})
    if os.name == "posix":
        (folder / "gone.jpg").symlink_to("nowhere")
    options = ("--skip-damaged", "--partial", "--attributes", folder / "a.csv")
    data = prepare(folder, tmp_path / "out", *options)
    check(data, FILES.keys() - {"IMG_0001", "more/80.bmp"})
    assert data.info["skipped"] == ["more/80.bmp"]
