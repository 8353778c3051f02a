"""Seven flat pictures stand for CelebA: enough for every layout and list, and each is known by its colour."""

import dataclasses
import io
import itertools
import os
import re
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from data_tools import celeba, decoding, pictures, toy_faces
from data_tools.celeba_source import find_celeba, is_image
from data_tools.files import PlainFile, files_in_folder
from data_tools.lists import read_attributes, read_partition
from vae_np.disk.dataset import Dataset
from vae_np.errors import DatasetError

NAMES = ["000001.jpg", "000002.jpg", "000003.jpg", "162771.jpg", "162772.jpg", "182638.jpg", "182639.jpg"]
SPLITS = [0, 0, 0, 1, 1, 2, 2]
COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250), (250, 10, 250), (90, 90, 90)]
ATTRIBUTES = ["5_o_Clock_Shadow", "Bald", "Eyeglasses"]
VALUES = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, -1, 1], [-1, -1, -1]]


def encode(image, kind="JPEG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def zipped(files, compression=zipfile.ZIP_STORED):
    """A zip archive, as bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def write(folder, files):
    """Write {path: content}, but no file where the content is None."""
    for name, data in files.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


JPEGS = {name: encode(Image.new("RGB", (178, 218), colour)) for name, colour in zip(NAMES, COLOURS, strict=True)}
ROWS = [[name, *map(str, values)] for name, values in zip(NAMES, VALUES, strict=True)]
KAGGLE_ATTRIBUTES = "\r\n".join(",".join(row) for row in [["image_id", *ATTRIBUTES], *ROWS]) + "\r\n"
KAGGLE_PARTITION = "image_id,partition\r\n" + "".join(f"{n},{s}\r\n" for n, s in zip(NAMES, SPLITS, strict=True))
OFFICIAL_ATTRIBUTES = KAGGLE_ATTRIBUTES.replace("image_id,", "7\n").replace("\r\n", "\n").replace(",", "  ")
OFFICIAL_PARTITION = "".join(f"{name} {split}\n" for name, split in zip(NAMES, SPLITS, strict=True))
ALIGNED = "img_align_celeba/img_align_celeba"
NESTED = {f"{ALIGNED}/{name}": data for name, data in JPEGS.items()}
FLAT = {f"img_align_celeba/{name}": data for name, data in JPEGS.items()}
KAGGLE_LISTS = {"list_attr_celeba.csv": KAGGLE_ATTRIBUTES, "list_eval_partition.csv": KAGGLE_PARTITION}
KAGGLE = NESTED | KAGGLE_LISTS
KAGGLE_ZIP = zipped(KAGGLE, zipfile.ZIP_DEFLATED)
OFFICIAL = FLAT | {"list_attr_celeba.txt": OFFICIAL_ATTRIBUTES, "list_eval_partition.txt": OFFICIAL_PARTITION}


def map_here(task, count, workers, description, items):
    for start, stop in ((0, count // 2), (count // 2, count)):
        yield start, stop, task(start, stop, items[start:stop])


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Decode in this process, since starting workers takes longer than all the rest."""
    monkeypatch.setattr(decoding, "map_rows", map_here)


def kaggle_zip(folder):
    return write(folder, {"archive.zip": KAGGLE_ZIP}) / "archive.zip"


def prepare(source, out, *options):
    assert celeba.main([str(source), "--out", str(out), "--size", "8", *options]) == 0
    return Dataset(out)


def refusal(capsys, source, out, *options):
    """The one line with which the command refuses, leaving all as it was."""
    before = os.listdir(out.parent)
    assert celeba.main([str(source), "--out", str(out), *options]) == 1
    assert os.listdir(out.parent) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def check(data, rows=range(7), splits=(3, 2, 2), skipped=()):
    """Check that a dataset has these rows of NAMES, in this order, and so many of each split."""
    assert [name[:6] for name in data.info["file_names"]] == [NAMES[row][:6] for row in rows]
    assert [data.info["splits"][name] for name in ("train", "validation", "test")] == list(splits)
    assert data.info["skipped"] == list(skipped)
    assert data.attribute_names == ATTRIBUTES
    np.testing.assert_array_equal(data.attributes, np.array(VALUES)[rows] == 1)
    colours = np.array(COLOURS)[rows, None, None]
    np.testing.assert_allclose(data.images, np.broadcast_to(colours, (len(rows), 8, 8, 3)), atol=3)  # JPEG rounds them
    data.check_sums()


OFFICIAL_ZIP = {path: data for path, data in OFFICIAL.items() if path not in FLAT} | {
    "img_align_celeba.zip": zipped(FLAT)}
OFFICIAL_TREE = {"Anno/list_attr_celeba.txt": OFFICIAL_ATTRIBUTES, "Eval/list_eval_partition.txt": OFFICIAL_PARTITION,
                 "Img/img_align_celeba.zip": zipped(FLAT)}
PNGS = {f"Img/img_align_celeba_png/{name[:6]}.png": encode(Image.open(io.BytesIO(data)), "PNG")
        for name, data in JPEGS.items()}
OF_NO_INTEREST = {"/etc/passwd": "x", "..\\..\\x.exe": "x", "C:/autoexec.bat": "x", "Icon\r": "", "x.jpg/": "",
                  "__MACOSX/img_align_celeba/._000001.jpg": b"\0"}
LAYOUTS = {
    "Kaggle's archive": ({"archive.zip": KAGGLE_ZIP}, "archive.zip"),
    "Kaggle's archive, unpacked": ({f"archive/{path}": data for path, data in KAGGLE.items()}, ""),
    "archive made on a Mac": ({"x.zip": zipped(OF_NO_INTEREST | FLAT | KAGGLE_LISTS)}, "x.zip"),
    "official archive": (OFFICIAL_ZIP, "img_align_celeba.zip"),
    "official archive, its folder": (OFFICIAL_ZIP, ""),
    "official archive, unpacked, its images": (OFFICIAL, "img_align_celeba"),
    "archive made on Windows": ({"x.zip": zipped({path.replace("/", "\\"): data for path, data in KAGGLE.items()})},
                                "x.zip"),
    "in capitals": ({path.replace(".jpg", ".JPG"): data for path, data in KAGGLE.items()}, ""),
    "official tree, PNG": (OFFICIAL_TREE | {"Img/img_align_celeba.zip": None} | PNGS, ""),
    "official tree": (OFFICIAL_TREE, ""),
    "official tree, its archive": (OFFICIAL_TREE, "Img/img_align_celeba.zip"),
    "official tree, unpacked": (OFFICIAL_TREE | {f"Img/{path}": data for path, data in FLAT.items()}, ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_dataset(tmp_path, layout):
    files, source = LAYOUTS[layout]
    check(prepare(write(tmp_path / "source", files) / source, tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


LIST_VARIANTS = {
    "LF": lambda text: text.replace("\r\n", "\n"),
    "CRLF and blanks": lambda text: text.replace(",", "  "),
    "tabs": lambda text: text.replace(",", "\t"),
    "byte order mark, no header": lambda text: "\ufeff" + text.removeprefix("image_id,partition\r\n"),
    "blank lines, no last newline": lambda text: text.replace("\r\n", "\n\n").rstrip(),
    "blank first header cell": lambda text: text.replace("image_id", ""),
    "id,partition": lambda text: text.replace("image_id", "id"),
    "column numbers above": lambda text: "0,1,2,3\r\n" + text,
    "count above": lambda text: f"{len(NAMES)}\n" + text,
    "quoted": lambda text: re.sub(r"[^,\r\n]+", r'"\g<0>"', text),
    "semicolons, empty columns": lambda text: text.replace(",", ";").replace("\r", ";;\r"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "blanks in names": lambda text: text.replace(".jpg,", " .jpg ,"),
    "blanks in names, parted by blanks": lambda text: text.replace(".jpg", " .jpg").replace(",", " "),
    "header twice": lambda text: text.split("\r\n")[0] + "\r\n" + text,
}


@pytest.mark.parametrize("variant", LIST_VARIANTS)
def test_every_variant_of_the_lists_reads_the_same(tmp_path, variant):
    write(tmp_path, {name: LIST_VARIANTS[variant](text) for name, text in KAGGLE_LISTS.items()})
    attributes, partition = (PlainFile(str(tmp_path / name)) for name in KAGGLE_LISTS)
    values = {name: bytes(v == 1 for v in values) for name, values in zip(NAMES, VALUES, strict=True)}
    names, rows = read_attributes(attributes, {"1": 1, "-1": 0}, is_image)
    splits = read_partition(partition, is_image)
    assert (names, {name.replace(" ", ""): row for name, row in rows.items()}) == (ATTRIBUTES, values)
    assert {name.replace(" ", ""): split for name, split in splits.items()} == dict(zip(NAMES, SPLITS, strict=True))


def test_what_images_and_lists_share_is_taken_if_asked_for(tmp_path, capsys):
    lists = KAGGLE_LISTS | {"list_attr_celeba.csv": KAGGLE_ATTRIBUTES.replace("000003.jpg,-1,-1,1\r\n", "")}
    images = {path: data for path, data in NESTED.items() if not path.endswith(("000001.jpg", "182639.jpg"))}
    data = prepare(write(tmp_path / "source", images | lists), tmp_path / "out", "--partial")
    check(data, rows=[1, 3, 4, 5], splits=(1, 2, 1))
    said = capsys.readouterr().out
    assert re.search(r"4 images are there and listed; .*attr_celeba.csv lists 2 more, and leaves out 1\n", said)
    assert re.search(r"4 images are there and listed; .*partition.csv lists 3 more, and leaves out 0\n", said)


@pytest.mark.parametrize("lists", [{}, KAGGLE_LISTS])
def test_images_are_shared_out_anew_if_asked_for(tmp_path, lists):
    data = prepare(write(tmp_path / "source", NESTED | lists), tmp_path / "out", "--split", "1,1,0")
    assert sorted(data.info["file_names"]) == NAMES
    assert min(data.info["splits"]["train"], data.info["splits"]["validation"]) > 0 == data.info["splits"]["test"]


@pytest.mark.parametrize(("crop", "shares"), [("148", "42% to 69%"), ("square", "60% to 100%"), ("none", "100%")])
def test_frames_unlike_celebas_are_said_with_what_the_crop_keeps(tmp_path, capsys, crop, shares):
    others = {f"{ALIGNED}/{NAMES[row]}": encode(Image.new("RGB", size, COLOURS[row]))
              for row, size in ((0, (300, 300)), (3, (50, 30)))}
    check(prepare(write(tmp_path / "source", KAGGLE | others), tmp_path / "out", "--crop", crop))
    said = capsys.readouterr().out
    assert f"2 images are not 178x218 but 50x30 to 300x300; crop {crop} keeps {shares} of the frame\n" in said


def test_images_stand_by_split_then_name_whatever_the_lists_say_first(tmp_path):
    splits = dict(zip(NAMES, (2, 0, 1, 1, 0, 2, 0), strict=True))
    header, names, *lines = OFFICIAL_ATTRIBUTES.splitlines(keepends=True)
    lists = {"list_eval_partition.txt": "".join(f"{name} {splits[name]}\n" for name in reversed(NAMES)),
             "list_attr_celeba.txt": "".join([header, names, *reversed(lines)])}
    check(prepare(write(tmp_path / "source", FLAT | lists), tmp_path / "out"), rows=[1, 4, 6, 2, 3, 0, 5])


def test_what_is_missing_is_said_aloud(tmp_path, capsys):
    data = prepare(write(tmp_path / "source", dict(list(FLAT.items())[:5])), tmp_path / "out")
    assert data.attributes.shape == (5, 0)
    assert data.splits["test"] == slice(5, 5)
    said = capsys.readouterr().out
    assert "no list_eval_partition.csv or .txt found: the official splits" in said
    assert "no list_attr_celeba.csv or .txt found: the dataset has no attributes" in said
    assert "test               0 images: figures will come from validation images" in said
    assert "train              3 images\n" in said


def test_official_splits():
    numbers = (1, 162_770, 162_771, 182_637, 182_638, 202_599)
    assert [celeba.official_split(f"{number:06}.jpg") for number in numbers] == [0, 0, 1, 1, 2, 2]


def test_images_that_are_converted_are_counted(tmp_path, capsys):
    cmyk, grey = encode(Image.new("CMYK", (178, 218), (245, 245, 5, 0))), encode(Image.new("L", (178, 218), 90))
    files = KAGGLE | {f"{ALIGNED}/000003.jpg": cmyk, f"{ALIGNED}/182639.jpg": grey}
    check(prepare(write(tmp_path / "source", files), tmp_path / "out"))
    assert re.search("converted to RGB: 2 images, the first .*000003.jpg\n", capsys.readouterr().out)


def test_limit_keeps_the_first_of_every_split_or_is_refused(tmp_path, capsys):
    source = kaggle_zip(tmp_path)
    error = refusal(capsys, source, tmp_path / "out", "--limit", "2")
    assert error == "error: --limit 2 leaves a split without images; give 3 or more\n"
    data = prepare(source, tmp_path / "out", "--limit", "4", "--crop", "none")
    check(data, rows=[0, 1, 3, 5], splits=(2, 1, 1))
    assert (data.info["source"], data.info["crop"], data.info["size"]) == ("CelebA", "none", 8)
    assert data.info["resampling"] == "bilinear, antialiased"
    check(prepare(source, tmp_path / "out", "--overwrite"))


def test_share_is_proportional_and_exact_and_leaves_no_split_empty():
    assert celeba.share(1000, [162_770, 19_867, 19_962]) == [803, 98, 99]
    assert celeba.share(100, [16_000, 2_000, 0]) == [89, 11, 0]
    assert celeba.share(None, [3, 2, 2]) == celeba.share(99, [3, 2, 2]) == [3, 2, 2]
    for counts in itertools.product((0, 1, 2, 3, 50), repeat=3):
        for limit in range(max(np.count_nonzero(counts), 1), sum(counts) + 1):
            kept = celeba.share(limit, counts)
            assert sum(kept) == limit
            assert all(min(count, 1) <= k <= count for k, count in zip(kept, counts, strict=True)), (limit, counts)


@pytest.mark.parametrize(("command", "arguments", "problem"), [
    (celeba, "archive.zip", "--out"),
    (celeba, "archive.zip --out x --size 513", "argument --size: 513 is not between 8 and 512"),
    (celeba, "archive.zip --out x --crop 179", "argument --crop: '179' is neither none, square, nor a number"),
    (celeba, "archive.zip --out x --split 0.9,0.1", "argument --split: '0.9,0.1' is not three shares"),
    (pictures, "folder --out x --split a,b,c", "argument --split: 'a,b,c' is not three shares"),
    (pictures, "folder --out x --split inf,1,1", "argument --split: 'inf,1,1' is not three shares"),
    (celeba, "archive.zip --out x --limit 0", "argument --limit: 0 is not between 1 and 999,999"),
    (toy_faces, "--out x --count 9", "argument --count: 9 is not between 10 and 999,999"),
    (toy_faces, "--out x --size 7", "argument --size: 7 is not between 8 and 512"),
    (toy_faces, "--count 10", "give --out, --celeba-zip, or both"),
])
def test_wrong_usage_is_one_line_and_status_2(capsys, command, arguments, problem):
    with pytest.raises(SystemExit) as status:
        command.main(arguments.split())
    error = capsys.readouterr().err
    assert status.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert problem in error


def test_command_with_workers(tmp_path):
    command = [sys.executable, "-m", "data_tools.celeba", "--workers", "2", "--size", "8", "--out", tmp_path / "out"]
    done = subprocess.run([*command, kaggle_zip(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "decoding: 100%" in done.stderr
    assert "validation         2 images" in done.stdout
    check(Dataset(tmp_path / "out"))


ARCHIVE, IMAGE, ATTRIBUTE_LIST, PARTITION_LIST = "archive.zip", f"{ALIGNED}/000003.jpg", *KAGGLE_LISTS
SMALL = encode(Image.new("RGB", (178, 147)))


def patched(place, value, archive=KAGGLE_ZIP, width=4):
    """A zip archive with one number in its directory's entry of 000003.jpg replaced."""
    place += archive.rindex(b"PK\1\2", 0, archive.rindex(IMAGE.encode()))
    return archive[:place] + value.to_bytes(width, "little") + archive[place + width :]


# For each case: the archive, or a file of Kaggle's copy once that is unpacked; what is there instead (None for nothing,
# and of a list a pair of what is replaced by what); and what the error says, where three dots stand for any words.
ERRORS = {
    "no archive": (ARCHIVE, None, "archive.zip does not exist; give CelebA's zip archive"),
    "empty archive": (ARCHIVE, "", "archive.zip is empty; download it again"),
    "web page": (ARCHIVE, b"\xef\xbb\xbf\r\n  <html>Quota exceeded</html>",
                 "archive.zip is a web page, not a zip archive: usually a site's request to ... download it again"),
    "another kind": (ARCHIVE, b"7z\xbc\xaf'\x1c" + bytes(100), "archive.zip is not a zip archive; if it is one"),
    "cut archive": (ARCHIVE, KAGGLE_ZIP[:-500], "archive.zip breaks off before its end; download it again"),
    "damaged directory": (ARCHIVE, KAGGLE_ZIP.replace(b"PK\1\2", b"PK\1\0"),
                          "archive.zip is damaged (Bad magic number ... download it again"),
    "unknown compression": (ARCHIVE, zipped(KAGGLE, zipfile.ZIP_BZIP2), "is encrypted or compressed ... unpack it"),
    "lists alone": (ARCHIVE, zipped(KAGGLE_LISTS), "has no .jpg or .png images; give CelebA's zip archive"),
    "damaged members": (ARCHIVE, zipped(KAGGLE).replace(b"JFIF", b"JFAF"),
                        "archive.zip is damaged (its checksum is wrong); download the archive again"),
    "damaged compressed member": (ARCHIVE, patched(10, 8, zipped(KAGGLE), width=2), "archive.zip is damaged (Error -3"),
    "damaged headers": (ARCHIVE, KAGGLE_ZIP.replace(b"PK\3\4", b"PK\3\3"), "(its checksum is wrong)"),
    "member of another size": (ARCHIVE, patched(24, 100, zipped(KAGGLE)), "(its checksum is wrong)"),
    "member of absurd size": (ARCHIVE, patched(24, 4_000_000_000),
                              "has 4,000,000,000 bytes, too many for a picture or a list"),
    "member of absurd compressed size": (ARCHIVE, patched(20, 4_000_000_000), "has 4,000,000,000 bytes"),
    "absolute member": (ARCHIVE, zipped(KAGGLE | {"/etc/000009.jpg": SMALL}),
                        "a member named '/etc/000009.jpg', a path that leads out of the archive; that is none"),
    "member that goes up": (ARCHIVE, zipped(KAGGLE | {"a/../../000009.jpg": SMALL}), "a path that leads out"),
    "member with backslashes": (ARCHIVE, zipped(KAGGLE | {"..\\000009.jpg": SMALL}), "a path that leads out"),
    "member with a drive": (ARCHIVE, zipped(KAGGLE | {"C:/000009.jpg": SMALL}), "a path that leads out"),
    "unprintable name": (ARCHIVE, zipped(KAGGLE | {"a/\x1b[2J\n.jpg": SMALL}), r"a/\x1b[2J\n.jpg in ... rename it"),
    "unofficial name": (ARCHIVE, zipped({"face.jpg": SMALL}),
                        "face.jpg is none of CelebA's file names (000001.jpg to 202599.jpg); put the list beside"),
    "name twice": ("img_celeba/000003.jpg", SMALL, "two files are named 000003.jpg: ... only the aligned images"),
    "large image": (IMAGE, encode(Image.new("1", (10_000, 9_000)), "PNG"), "10000x9000 pixels are too many"),
    "larger image": (IMAGE, encode(Image.new("1", (20_000, 9_000)), "PNG"), "(Image size (180000000 pixels) exceeds"),
    "huge file": (IMAGE, bytes((1 << 27) + 1), "has 134,217,729 bytes, too many for a picture or a list"),
    "image for Ghostscript": (IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 178 218\n%%EndComments\n",
                              "000003.jpg cannot be decoded (it is no picture that Pillow knows"),
    "no image": (IMAGE, None, "celeba.csv lists 7 images, of which 1 are absent, the first 000003.jpg; ... --partial"),
    "no split": (PARTITION_LIST, ("000002.jpg,0\r\n", ""), "partition.csv leaves out 1 of 7 images, ... --partial"),
    "no attributes": (ATTRIBUTE_LIST, ("000002.jpg,-1,1,-1\r\n", ""), "celeba.csv leaves out 1 of 7 images, the"),
    "attribute of 0": (ATTRIBUTE_LIST, ("2.jpg,-1,1", "2.jpg,0,1"),
                       "celeba.csv, line 3: 000002.jpg has the value '0', expected one of 1, -1; mend that line"),
    "partition 3": (PARTITION_LIST, ("2.jpg,0", "2.jpg,3"), "2.jpg has the value '3', expected one of 0, 1, 2"),
    "short line": (ATTRIBUTE_LIST, ("2.jpg,-1,1", "2.jpg,1"), "line 3: values of 000002.jpg: 2, expected 3"),
    "no value": (PARTITION_LIST, ("1.jpg,0", "1.jpg"), "line 2: values of 000001.jpg: 0, expected 1"),
    "listed twice": (PARTITION_LIST, ("000002.jpg", "000001.jpg"), "line 3: 000001.jpg is listed twice"),
    "strange line": (PARTITION_LIST, ("000002.jpg", "<html>"), "line 3: '<html>' is no image's file name"),
    "empty list": (PARTITION_LIST, "", "list_eval_partition.csv lists no images; a line has an image's file name"),
    "no header": (ATTRIBUTE_LIST, ("image_id," + ",".join(ATTRIBUTES), ""),
                  "celeba.csv has 3 values for each image but no line that names 3 attributes; begin it with one"),
    "attribute named twice": (ATTRIBUTE_LIST, ("Bald", "Eyeglasses"), "no line that names 3 attributes"),
    "lists swapped": (PARTITION_LIST, KAGGLE_ATTRIBUTES.replace("-1", "0"), "has several values for each image"),
    "open quote": (PARTITION_LIST, ("000002", '"000002'), "line 8: unexpected end of data; mend that"),
    "list that is no text": (ATTRIBUTE_LIST, b"\xff\xfe1", "celeba.csv is not a text file in UTF-8 or UTF-16; save"),
    "two names for one": (PARTITION_LIST, ("000001.jpg,0\r\n000002.jpg,0", "1/000001.png,0\r\n2/000001.JPG,0"),
                          "lists 000001.jpg twice, the second time as 2/000001.JPG; remove"),
    "no validation": (PARTITION_LIST, KAGGLE_PARTITION.replace(",1\r", ",0\r"),
                      "none of 7 images is for validation, and ... --split"),
    "no list, first images": (ARCHIVE, zipped(dict(list(FLAT.items())[:3])), "none of 3 images ... --split"),
    "part of an archive": (ARCHIVE, patched(34, 1, width=2), "archive.zip is one part of a split archive; unpack"),
    "first part of one": (ARCHIVE, b"PK\7\x08" + zipped(KAGGLE)[:500], "archive.zip is one part of a split archive"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_clear_line_and_nothing_is_left(tmp_path, capsys, case):
    path, content, words = ERRORS[case]
    content = KAGGLE[path].replace(*content) if isinstance(content, tuple) else content
    source = write(tmp_path / "source", {path: content} if path == ARCHIVE else KAGGLE | {path: content})
    error = refusal(capsys, source / ARCHIVE if path == ARCHIVE else source, tmp_path / "out")
    assert re.search(".*".join(map(re.escape, words.split("..."))), error), error


@pytest.mark.parametrize("name", ["a.z01", "a.zip.002", "a.7z.003", "a.part2.rar", "a.r00"])
def test_a_part_of_an_archive_is_not_to_be_downloaded_again(tmp_path, capsys, name):
    error = refusal(capsys, write(tmp_path, {name: b"anything"}) / name, tmp_path / "out")
    assert f"{name} is one part of a split archive; unpack the first" in error and "download" not in error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    folder = write(tmp_path / "source", KAGGLE | {IMAGE: None})
    for pipe in (IMAGE, ARCHIVE):
        os.mkfifo(folder / pipe)
    assert "000003.jpg is missing or no ordinary file" in refusal(capsys, folder, tmp_path / "out")
    assert "archive.zip is neither a file nor a folder" in refusal(capsys, folder / ARCHIVE, tmp_path / "out")


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path):
    with pytest.raises(OSError, match="vanished"):
        list(files_in_folder(tmp_path / "vanished"))


@pytest.mark.parametrize("offset", [-5, 1 << 31, 1 << 63, 1 << 70])
def test_a_member_that_is_nowhere_is_damaged(tmp_path, offset):
    member = find_celeba(kaggle_zip(tmp_path)).images["000003.jpg"]
    with pytest.raises(DatasetError, match=r"000003.jpg in .* is damaged \(its place is outside the archive\)"):
        dataclasses.replace(member, offset=offset).read()


def test_no_more_is_unpacked_than_was_promised(tmp_path):
    # Of 30 MB, the directory says that they are 1,000 bytes, and gives the checksum of the first 1,001.
    archive = patched(24, 1000, zipped(KAGGLE | {IMAGE: bytes(30_000_000)}, zipfile.ZIP_DEFLATED))
    write(tmp_path, {"archive.zip": patched(16, zlib.crc32(bytes(1001)), archive)})
    member = find_celeba(tmp_path / "archive.zip").images["000003.jpg"]
    tracemalloc.start()
    with pytest.raises(DatasetError, match="checksum is wrong"):
        member.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_damaged_images_are_counted_and_skipped_if_asked_for(tmp_path, capsys):
    cut_and_text = {f"{ALIGNED}/000002.jpg": JPEGS["000002.jpg"][:-200], f"{ALIGNED}/162771.jpg": "no picture"}
    source = write(tmp_path / "source", KAGGLE | cut_and_text)
    error = refusal(capsys, source, tmp_path / "out")
    assert "000002.jpg cannot be decoded" in error
    assert error.endswith("in all, 2 of 7 images cannot be used, and --skip-damaged leaves them out\n")
    data = prepare(source, tmp_path / "out", "--skip-damaged")
    check(data, rows=[0, 2, 4, 5, 6], splits=(2, 1, 2), skipped=["000002.jpg", "162771.jpg"])
    said = capsys.readouterr().out
    assert "skipped 2 of 7 images that cannot be used, all named in dataset.json: " in said
    assert "all                5 images" in said
    alone = write(tmp_path / "alone", {"000001.jpg": "no picture", "162771.jpg": ""})
    assert refusal(capsys, alone, tmp_path / "none", "--skip-damaged").endswith("none of 2 images can be used\n")
