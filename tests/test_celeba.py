"""Seven flat pictures stand for CelebA: enough for every layout and list, and each is known by its colour."""

import dataclasses
import functools
import io
import itertools
import os
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from data_tools import celeba
from data_tools.celeba_source import PlainFile, files_in_folder, find_celeba, read_attributes, read_partition
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


JPEGS = {name: encode(Image.new("RGB", (178, 218), colour)) for name, colour in zip(NAMES, COLOURS, strict=True)}
ROWS = [[name, *map(str, values)] for name, values in zip(NAMES, VALUES, strict=True)]
KAGGLE_ATTRIBUTES = "\r\n".join(",".join(row) for row in [["image_id", *ATTRIBUTES], *ROWS]) + "\r\n"
KAGGLE_PARTITION = "image_id,partition\r\n" + "".join(f"{n},{s}\r\n" for n, s in zip(NAMES, SPLITS, strict=True))
OFFICIAL_ATTRIBUTES = (f"{len(NAMES)}\n" + " ".join(ATTRIBUTES) + " \n"
                       + "".join(row[0] + "".join(f"{value:>3}" for value in row[1:]) + "\n" for row in ROWS))
OFFICIAL_PARTITION = "".join(f"{name} {split}\n" for name, split in zip(NAMES, SPLITS, strict=True))
KAGGLE_LISTS = {"list_attr_celeba.csv": KAGGLE_ATTRIBUTES, "list_eval_partition.csv": KAGGLE_PARTITION}
OFFICIAL_LISTS = {"list_attr_celeba.txt": OFFICIAL_ATTRIBUTES, "list_eval_partition.txt": OFFICIAL_PARTITION}
ALIGNED = "img_align_celeba/img_align_celeba"
NESTED = {f"{ALIGNED}/{name}": data for name, data in JPEGS.items()}
FLAT = {f"img_align_celeba/{name}": data for name, data in JPEGS.items()}


def as_bytes(data):
    return data.encode() if isinstance(data, str) else data


def write_zip(path, files, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, as_bytes(data))
    return path


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(as_bytes(data))
    return path


@pytest.fixture
def here(monkeypatch):
    """Decode in this process, since starting workers takes longer than all the rest."""
    def map_here(task, count, workers, description, items):
        half = count // 2
        for start, stop in ((0, half), (half, count)):
            yield start, stop, task(start, stop, items[start:stop])

    monkeypatch.setattr(celeba, "map_rows", map_here)


def prepare(source, out, *options):
    assert celeba.main([str(source), "--out", str(out), "--size", "8", *options]) == 0
    return Dataset(out)


def check_whole(data):
    assert data.info["file_names"] == NAMES
    assert data.splits == {"train": slice(0, 3), "validation": slice(3, 5), "test": slice(5, 7)}
    assert data.attribute_names == ATTRIBUTES
    np.testing.assert_array_equal(data.attributes, np.array(VALUES) == 1)
    check_colours(data.images, COLOURS)


def check_colours(images, colours):
    expected = np.broadcast_to(np.array(colours)[:, None, None], images.shape)
    np.testing.assert_allclose(images, expected, atol=3)  # JPEG rounds colours a little


def kaggle_zip(root):
    return write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS)


def compressed_zip(root):
    return write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS, zipfile.ZIP_DEFLATED)


def zip_from_a_mac(root):
    companions = {"__MACOSX/img_align_celeba/._" + name: b"\0" for name in NAMES}
    return write_zip(root / "celeba.zip", companions | FLAT | KAGGLE_LISTS)


def official_zip(root):
    write_folder(root, OFFICIAL_LISTS)
    return write_zip(root / "img_align_celeba.zip", FLAT)


def folder_of_official_zip(root):
    return official_zip(root).parent


def official_tree(root):
    write_folder(root / "Anno", {"list_attr_celeba.txt": OFFICIAL_ATTRIBUTES})
    write_folder(root / "Eval", {"list_eval_partition.txt": OFFICIAL_PARTITION})
    write_zip(root / "Img" / "img_align_celeba.zip", FLAT)
    return root


def zip_in_official_tree(root):
    return official_tree(root) / "Img" / "img_align_celeba.zip"


def unpacked_official_tree(root):
    official_tree(root)
    return write_folder(root / "Img", FLAT).parent


def unpacked_kaggle(root):
    return write_folder(root / "celeba", NESTED | KAGGLE_LISTS)


def unpacked_kaggle_one_folder_up(root):
    write_folder(root / "celeba" / "archive", NESTED | KAGGLE_LISTS)
    return root / "celeba"


def unpacked_official(root):
    return write_folder(root / "celeba", FLAT | OFFICIAL_LISTS)


def folder_of_images(root):
    return write_folder(root / "celeba", FLAT | OFFICIAL_LISTS) / "img_align_celeba"


def zip_without_partition(root):
    return write_zip(root / "archive.zip", NESTED | {"list_attr_celeba.csv": KAGGLE_ATTRIBUTES})


@pytest.mark.parametrize("layout", [
    kaggle_zip, compressed_zip, zip_from_a_mac, official_zip, folder_of_official_zip, official_tree,
    zip_in_official_tree, unpacked_official_tree, unpacked_kaggle, unpacked_kaggle_one_folder_up, unpacked_official,
    folder_of_images, zip_without_partition,
])
def test_every_layout_gives_the_same_dataset(tmp_path, here, layout):
    check_whole(prepare(layout(tmp_path / "source"), tmp_path / "out"))


ATTRIBUTE_VARIANTS = {
    "kaggle": KAGGLE_ATTRIBUTES,
    "official": OFFICIAL_ATTRIBUTES,
    "LF": KAGGLE_ATTRIBUTES.replace("\r\n", "\n"),
    "CRLF": OFFICIAL_ATTRIBUTES.replace("\n", "\r\n"),
    "blank first header cell": KAGGLE_ATTRIBUTES.replace("image_id", ""),
    "column numbers above": "0,1,2,3\r\n" + KAGGLE_ATTRIBUTES,
    "header twice": KAGGLE_ATTRIBUTES.split("\r\n")[0] + "\r\n" + KAGGLE_ATTRIBUTES,
    "byte order mark": "\ufeff" + KAGGLE_ATTRIBUTES,
    "tabs": OFFICIAL_ATTRIBUTES.replace(" ", "\t"),
    "blank lines, no last newline": OFFICIAL_ATTRIBUTES.replace("\n", "\n\n").rstrip(),
}
PARTITION_VARIANTS = {
    "kaggle": KAGGLE_PARTITION,
    "official": OFFICIAL_PARTITION,
    "LF": KAGGLE_PARTITION.replace("\r\n", "\n"),
    "CRLF": OFFICIAL_PARTITION.replace("\n", "\r\n"),
    "id,partition": KAGGLE_PARTITION.replace("image_id", "id"),
    "blank first header cell": KAGGLE_PARTITION.replace("image_id", ""),
    "byte order mark": "\ufeff" + OFFICIAL_PARTITION,
    "count line": f"{len(NAMES)}\n{OFFICIAL_PARTITION}",
}


@pytest.mark.parametrize("variant", ATTRIBUTE_VARIANTS)
def test_every_attribute_list_reads_the_same(tmp_path, variant):
    write_folder(tmp_path, {"list": ATTRIBUTE_VARIANTS[variant]})
    names, rows = read_attributes(PlainFile(str(tmp_path / "list")))
    assert names == ATTRIBUTES
    assert rows == {name: bytes(v == 1 for v in values) for name, values in zip(NAMES, VALUES, strict=True)}


@pytest.mark.parametrize("variant", PARTITION_VARIANTS)
def test_every_partition_list_reads_the_same(tmp_path, variant):
    write_folder(tmp_path, {"list": PARTITION_VARIANTS[variant]})
    assert read_partition(PlainFile(str(tmp_path / "list"))) == dict(zip(NAMES, SPLITS, strict=True))


def test_images_stand_by_split_then_name_whatever_the_lists_say_first(tmp_path, here):
    splits = dict(zip(NAMES, (2, 0, 1, 1, 0, 2, 0), strict=True))
    partition = "".join(f"{name} {splits[name]}\n" for name in reversed(NAMES))
    lines = OFFICIAL_ATTRIBUTES.splitlines(keepends=True)
    attributes = "".join(lines[:2] + lines[:1:-1])
    lists = {"list_eval_partition.txt": partition, "list_attr_celeba.txt": attributes}
    data = prepare(write_folder(tmp_path / "source", FLAT | lists), tmp_path / "out")
    order = [1, 4, 6, 2, 3, 0, 5]
    assert data.info["file_names"] == [NAMES[i] for i in order]
    assert [data.info["splits"][name] for name in ("train", "validation", "test")] == [3, 2, 2]
    np.testing.assert_array_equal(data.attributes, np.array(VALUES)[order] == 1)
    check_colours(data.images, [COLOURS[i] for i in order])


def test_what_is_missing_is_said_aloud(tmp_path, here, capsys):
    some = {path: data for path, data in FLAT.items() if not path.endswith(("182638.jpg", "182639.jpg"))}
    data = prepare(write_folder(tmp_path / "source", some), tmp_path / "out")
    assert data.attributes.shape == (5, 0)
    assert data.splits["test"] == slice(5, 5)
    said = capsys.readouterr().out
    assert "no list_eval_partition.csv or .txt found: the official splits" in said
    assert "no list_attr_celeba.csv or .txt found: the dataset has no attributes" in said
    assert "test               0 images: this copy of CelebA has none" in said
    assert "train              3 images\n" in said


@pytest.mark.parametrize(("name", "split"), [
    ("000001.jpg", 0), ("162770.jpg", 0), ("162771.jpg", 1), ("182637.jpg", 1), ("182638.jpg", 2), ("202599.jpg", 2),
])
def test_official_split(name, split):
    assert celeba.official_split(name) == split


def coordinates(width=178, height=218):
    """An image whose red is each pixel's x, and whose green is its y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def decode(tmp_path, image, crop, size):
    image.save(tmp_path / "image.png")
    pixels, converted = celeba.decode(PlainFile(str(tmp_path / "image.png")), crop, size)
    assert not converted
    return pixels


@pytest.mark.parametrize(("crop", "left", "top"), [(148, 15, 35), (140, 19, 39), (128, 25, 45)])
def test_crop_takes_the_central_square(tmp_path, crop, left, top):
    pixels = decode(tmp_path, coordinates(), crop, size=crop)
    y, x = np.mgrid[:crop, :crop]
    np.testing.assert_array_equal(pixels[..., 0], left + x)
    np.testing.assert_array_equal(pixels[..., 1], top + y)


def test_crop_none_squashes_the_whole_frame(tmp_path):
    pixels = decode(tmp_path, coordinates(), "none", size=109).astype(float)
    middle = np.arange(109)[4:-4] + 0.5
    np.testing.assert_allclose(pixels[50, 4:-4, 0], middle * 178 / 109 - 0.5, atol=1)
    np.testing.assert_allclose(pixels[4:-4, 50, 1], middle * 218 / 109 - 0.5, atol=1)


def test_an_odd_margin_is_rounded_as_torchvision_rounds_it():
    assert celeba.crop_box(181, 217, 148) == (16, 34, 164, 182)  # margins 16.5 and 34.5: to the even neighbour


def test_scaling_is_antialiased(tmp_path):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (218, 89))).convert("RGB")
    pixels = decode(tmp_path, stripes, 148, size=37)
    np.testing.assert_allclose(pixels, 127.5, atol=16)  # four-fold: every pixel sees as much black as white


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_kinds_of_images_become_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (178, 218), "white").convert(mode).save(path)
    pixels, converted = celeba.decode(PlainFile(str(path)), 148, 8)
    assert converted
    np.testing.assert_array_equal(pixels, np.full((8, 8, 3), 255, np.uint8))


def test_16_bits_keep_the_upper_8(tmp_path):
    Image.fromarray(np.full((218, 178), 0x80FF, np.uint16)).save(tmp_path / "image.png")
    pixels, converted = celeba.decode(PlainFile(str(tmp_path / "image.png")), 148, 8)
    assert converted
    np.testing.assert_array_equal(pixels, np.full((8, 8, 3), 0x80, np.uint8))


def test_images_of_another_size_are_cropped_by_the_same_rule(tmp_path):
    pixels = decode(tmp_path, coordinates(200, 160), 148, size=148)
    assert tuple(pixels[0, 0]) == (26, 6, 0)


def test_limit_keeps_the_first_of_every_split(tmp_path, here):
    data = prepare(kaggle_zip(tmp_path), tmp_path / "out", "--limit", "4")
    assert data.info["file_names"] == [NAMES[0], NAMES[1], NAMES[3], NAMES[5]]
    np.testing.assert_array_equal(data.attributes, np.array(VALUES)[[0, 1, 3, 5]] == 1)
    check_colours(data.images, [COLOURS[i] for i in (0, 1, 3, 5)])


def test_share_is_proportional():
    assert celeba.share(1000, [162_770, 19_867, 19_962]) == [803, 98, 99]
    assert celeba.share(100, [16_000, 2_000, 0]) == [89, 11, 0]
    assert celeba.share(None, [3, 2, 2]) == [3, 2, 2]
    assert celeba.share(99, [3, 2, 2]) == [3, 2, 2]


def test_share_is_exact_and_leaves_no_split_empty():
    for counts in itertools.product((0, 1, 2, 3, 50), repeat=3):
        splits = sum(count > 0 for count in counts)
        for limit in range(max(splits, 1), sum(counts) + 1):
            kept = celeba.share(limit, counts)
            assert sum(kept) == limit
            assert all(min(count, 1) <= k <= count for k, count in zip(kept, counts, strict=True)), (limit, counts)


def test_dataset_json_tells_how_it_was_made(tmp_path, here):
    info = prepare(kaggle_zip(tmp_path), tmp_path / "out", "--crop", "none").info
    assert (info["source"], info["crop"], info["size"]) == ("CelebA", "none", 8)
    assert info["resampling"] == "bilinear, antialiased"


def missing_source(root):
    return root / "celeba.zip"


def web_page(root):
    return write_folder(root, {"archive.zip": "<!DOCTYPE html><title>Sign in</title>"}) / "archive.zip"


def web_page_after_a_blank_line(root):
    return write_folder(root, {"archive.zip": b"\xef\xbb\xbf\r\n  <html>Quota exceeded</html>"}) / "archive.zip"


def empty_file(root):
    return write_folder(root, {"archive.zip": ""}) / "archive.zip"


def other_archive(root):
    return write_folder(root, {"archive.zip": b"7z\xbc\xaf\x27\x1c" + bytes(100)}) / "archive.zip"


def damaged_directory(root):
    path = kaggle_zip(root)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\0"))
    return path


def member_named(name):
    def layout(root):
        return write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS | {name: SMALL})

    return layout


def member_twice(root):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(kaggle_zip(root), "a") as archive:
        archive.writestr(f"{ALIGNED}/000003.jpg", SMALL)
    return root / "archive.zip"


def list_twice(root):
    return write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS | {"old/list_attr_celeba.csv": KAGGLE_ATTRIBUTES})


def patched(place, field, value, compression=zipfile.ZIP_DEFLATED):
    """A layout: Kaggle's archive with 4 bytes of the directory's entry of 000003.jpg replaced."""
    def layout(root):
        path = write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS, compression)
        content = bytearray(path.read_bytes())
        entry = content.rindex(f"{ALIGNED}/000003.jpg".encode()) - 46
        assert content[entry : entry + 4] == b"PK\1\2", field
        content[entry + place : entry + place + 4] = value.to_bytes(4, "little")
        path.write_bytes(content)
        return path

    return layout


def bomb(root):
    """A member of 30 MB of which the directory says that it has 1,000 bytes, and the checksum of the first 1,001."""
    layers = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = b"".join([*(layers.compress(bytes(1 << 20)) for _ in range(30)), layers.flush()])
    files = NESTED | KAGGLE_LISTS | {f"{ALIGNED}/000003.jpg": packed}
    path = write_zip(root / "archive.zip", files)
    content = bytearray(path.read_bytes())
    entry = content.rindex(f"{ALIGNED}/000003.jpg".encode()) - 46
    content[entry + 10] = zipfile.ZIP_DEFLATED
    content[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    content[entry + 16 : entry + 20] = zlib.crc32(bytes(1001)).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def png_of(pixels):
    """A PNG file that is so many pixels wide and high by its header; 10,000 would take 300 MB."""
    content = encode(Image.new("RGB", (1, 1)), "PNG")
    header = b"IHDR" + pixels.to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


def text_that_pillow_would_hand_to_ghostscript():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 178 218\n%%EndComments\n"


def pipe(root):
    kaggle_without(f"{ALIGNED}/000003.jpg")(root)
    os.mkfifo(root / ALIGNED / "000003.jpg")
    return root


def pipe_as_source(root):
    root.mkdir()
    os.mkfifo(root / "archive.zip")
    return root / "archive.zip"


def unprintable_name(root):
    return write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS | {"a/\x1b[2J\n.jpg": SMALL})


def cut_zip(root):
    path = kaggle_zip(root)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def damage_image(path):
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{ALIGNED}/000002.jpg").header_offset
        end = archive.getinfo(f"{ALIGNED}/000003.jpg").header_offset
    content = bytearray(path.read_bytes())
    content[(start + end) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def damaged_zip(root):
    return damage_image(kaggle_zip(root))


def damaged_compressed_zip(root):
    return damage_image(compressed_zip(root))


def unreadable_zip(root):
    return write_zip(root / "archive.zip", NESTED | KAGGLE_LISTS, zipfile.ZIP_BZIP2)


def zip_of_lists(root):
    return write_zip(root / "archive.zip", KAGGLE_LISTS)


def empty_folder(root):
    return write_folder(root, {"readme.txt": "nothing here"})


def kaggle_with(path, data):
    def layout(root):
        return write_folder(root, NESTED | KAGGLE_LISTS | {path: data})

    return layout


def kaggle_without(path):
    def layout(root):
        write_folder(root, NESTED | KAGGLE_LISTS)
        (root / path).unlink()
        return root

    return layout


def unofficial_names(root):
    return write_folder(root, {"face.jpg": JPEGS[NAMES[0]]})


ATTRIBUTE_LIST, PARTITION_LIST = KAGGLE_LISTS
SMALL = encode(Image.new("RGB", (178, 147)))
ERRORS = {
    "no source": (missing_source, "celeba.zip does not exist", "give CelebA's zip archive"),
    "web page": (web_page, "archive.zip is a web page, not a zip archive: usually a site's request to log in, or word",
                 "download it again"),
    "web page after a blank line": (web_page_after_a_blank_line, "archive.zip is a web page", "download it again"),
    "empty file": (empty_file, "archive.zip is empty", "download it again"),
    "other archive": (other_archive, "archive.zip is not a zip archive", "download it again"),
    "damaged directory": (damaged_directory, "archive.zip is damaged (Bad magic number", "download it again"),
    "cut zip": (cut_zip, "archive.zip breaks off", "download it again"),
    "damaged zip": (damaged_zip, "archive.zip is damaged (its checksum is wrong)", "download the archive again"),
    "damaged compressed zip": (damaged_compressed_zip, "archive.zip is damaged", "download the archive again"),
    "unreadable zip": (unreadable_zip, "archive.zip is encrypted or compressed in a way", "unpack it"),
    "zip of lists": (zip_of_lists, "archive.zip has no .jpg or .png images", "give CelebA's zip archive"),
    "empty folder": (empty_folder, "has no .jpg or .png images", "give CelebA's zip archive"),
    "cut JPEG": (kaggle_with(f"{ALIGNED}/000003.jpg", JPEGS[NAMES[2]][:-200]),
                 "000003.jpg cannot be decoded", "unpack it again"),
    "text as JPEG": (kaggle_with(f"{ALIGNED}/000003.jpg", "no picture"),
                     "000003.jpg cannot be decoded (no JPEG or PNG image)", "unpack it again"),
    "small image": (kaggle_with(f"{ALIGNED}/000003.jpg", SMALL),
                    "000003.jpg has 178x147 pixels, too few for a crop of 148", "choose a smaller --crop"),
    "same name twice": (kaggle_with("img_celeba/000003.jpg", SMALL), "two files are named 000003.jpg",
                        "only the aligned images"),
    "same member twice": (member_twice, "two files are named 000003.jpg", "only the aligned images"),
    "list twice": (list_twice, "two files are named list_attr_celeba.csv", "one list of each kind"),
    "absolute member": (member_named("/etc/000009.jpg"), "a member named '/etc/000009.jpg', a path that leads out",
                        "download it again"),
    "member that goes up": (member_named("a/../../000009.jpg"), "'a/../../000009.jpg', a path that leads out",
                            "download it again"),
    "member with backslashes": (member_named("..\\000009.jpg"), "a path that leads out", "download it again"),
    "member with a drive": (member_named("C:/000009.jpg"), "a path that leads out", "download it again"),
    "unprintable name": (unprintable_name, r"a/\x1b[2J\n.jpg", "rename it, or download it again"),
    "member of absurd size": (patched(24, "size", 4_000_000_000),
                              "has 4,000,000,000 bytes, more than any image or list of CelebA", "download it again"),
    "stored member of absurd size": (patched(20, "compressed size", 4_000_000_000, zipfile.ZIP_STORED),
                                     "has 4,000,000,000 bytes", "download it again"),
    "member of another size": (patched(24, "size", 100), "its checksum is wrong", "download the archive again"),
    "member nowhere": (patched(42, "offset", 2_000_000_000), "archive.zip is damaged", "download the archive again"),
    "newer kind of zip": (patched(6, "version", 255), "archive.zip is damaged (zip file version 25.5)",
                          "download it again"),
    "bomb": (bomb, "its checksum is wrong", "download the archive again"),
    "large image": (kaggle_with(f"{ALIGNED}/000003.jpg", png_of(5_000)), "has 5000x5000 pixels, too many",
                    "download or unpack it again"),
    "larger image": (kaggle_with(f"{ALIGNED}/000003.jpg", png_of(10_000)), "has 10000x10000 pixels, too many",
                     "download or unpack it again"),
    "huge image": (kaggle_with(f"{ALIGNED}/000003.jpg", png_of(60_000)), "000003.jpg cannot be decoded (Image size",
                   "download or unpack it again"),
    "image for another program": (kaggle_with(f"{ALIGNED}/000003.jpg", text_that_pillow_would_hand_to_ghostscript()),
                                  "000003.jpg cannot be decoded (no JPEG or PNG image)", "unpack it again"),
    "huge file": (kaggle_with(f"{ALIGNED}/000003.jpg", bytes((1 << 26) + 1)), "has 67,108,865 bytes",
                  "download it again"),
    "absent image": (kaggle_without(f"{ALIGNED}/000002.jpg"),
                     "list_eval_partition.csv lists images that are absent (1, the first 000002.jpg)", "same download"),
    "no such split of image": (kaggle_with(PARTITION_LIST, KAGGLE_PARTITION.replace("000002.jpg,0\r\n", "")),
                               "list_eval_partition.csv leaves out images that are there (1, the first 000002.jpg)",
                               "same download"),
    "no attributes of image": (kaggle_with(ATTRIBUTE_LIST, KAGGLE_ATTRIBUTES.replace("000002.jpg,-1,1,-1\r\n", "")),
                               "list_attr_celeba.csv leaves out images that are there (1, the first 000002.jpg)",
                               "same download"),
    "attribute value": (kaggle_with(ATTRIBUTE_LIST, KAGGLE_ATTRIBUTES.replace("000002.jpg,-1", "000002.jpg,0")),
                        "list_attr_celeba.csv, line 3: 000002.jpg has the value '0', expected one of 1, -1",
                        "download the list again"),
    "unknown partition": (kaggle_with(PARTITION_LIST, KAGGLE_PARTITION.replace("000002.jpg,0", "000002.jpg,3")),
                          "list_eval_partition.csv, line 3: 000002.jpg has the value '3', expected one of 0, 1, 2",
                          "download the list again"),
    "cut attribute list": (kaggle_with(ATTRIBUTE_LIST, KAGGLE_ATTRIBUTES[:-7]),
                           "list_attr_celeba.csv, line 8: values of 182639.jpg: 1, expected 3", "download the list"),
    "no value": (kaggle_with(PARTITION_LIST, OFFICIAL_PARTITION.replace(" 0", "")),
                 "line 1: values of 000001.jpg: 0, expected 1", "download the list again"),
    "listed twice": (kaggle_with(PARTITION_LIST, KAGGLE_PARTITION + "000001.jpg,0"),
                     "line 9: 000001.jpg is listed twice", "download the list again"),
    "strange line": (kaggle_with(PARTITION_LIST, KAGGLE_PARTITION + "<html>"),
                     "line 9: '<html>' is no image's file name", "download the list again"),
    "empty list": (kaggle_with(PARTITION_LIST, ""), "list_eval_partition.csv lists no images", "download it again"),
    "no header": (kaggle_with(ATTRIBUTE_LIST, KAGGLE_ATTRIBUTES.split("\r\n", 1)[1]),
                  "list_attr_celeba.csv has 3 values for each image but no line that names 3 attributes",
                  "download the list again"),
    "lists swapped": (kaggle_with(PARTITION_LIST, KAGGLE_ATTRIBUTES.replace("-1", "0")),
                      "list_eval_partition.csv has several values", "download the list again"),
    "list that is no text": (kaggle_with(ATTRIBUTE_LIST, b"\xff\xfe1\0"),
                             "list_attr_celeba.csv is not a text file", "download it again"),
    "attribute named twice": (kaggle_with(ATTRIBUTE_LIST, KAGGLE_ATTRIBUTES.replace("Bald", "Eyeglasses")),
                              "no line that names 3 attributes", "download the list again"),
    "unofficial names": (unofficial_names, "face.jpg is none of CelebA's file names", "put the list beside the images"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_clear_line_and_nothing_is_left(tmp_path, here, capsys, case):
    layout, problem, remedy = ERRORS[case]
    (tmp_path / "made").mkdir()
    assert celeba.main([str(layout(tmp_path / "source")), "--out", str(tmp_path / "made" / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert problem in error
    assert remedy in error
    assert os.listdir(tmp_path / "made") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
@pytest.mark.parametrize(("layout", "problem"), [(pipe, "000003.jpg is missing or no ordinary file"),
                                                 (pipe_as_source, "archive.zip is neither a file nor a folder")])
def test_a_pipe_is_not_waited_for(tmp_path, here, capsys, layout, problem):
    assert celeba.main([str(layout(tmp_path / "source")), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


def test_members_that_are_not_wanted_are_ignored_whatever_their_names(tmp_path, here):
    strange = {"/etc/passwd": "x", "..\\..\\x.exe": "x", "C:/autoexec.bat": "x", "Icon\r": "", "x.jpg/": ""}
    check_whole(prepare(write_zip(tmp_path / "archive.zip", NESTED | KAGGLE_LISTS | strange), tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["archive.zip", "out"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    def no_entry(top, topdown=True, onerror=None, followlinks=False):
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr(os, "walk", no_entry)
    with pytest.raises(PermissionError):
        list(files_in_folder(tmp_path))


@pytest.mark.parametrize("offset", [-5, 1 << 62, 1 << 63, 1 << 70])
def test_a_member_that_is_nowhere_is_damaged(tmp_path, offset):
    member = find_celeba(kaggle_zip(tmp_path)).images["000003.jpg"]
    with pytest.raises(DatasetError, match=r"000003.jpg in .* is damaged \(its place is outside the archive\)"):
        dataclasses.replace(member, offset=offset).read()


def test_no_more_is_unpacked_than_was_promised(tmp_path):
    member = find_celeba(bomb(tmp_path)).images["000003.jpg"]
    tracemalloc.start()
    with pytest.raises(DatasetError, match="checksum is wrong"):
        member.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def damaged_pair(root):
    """Kaggle's copy, unpacked, with the second image cut off and the fourth one a text, and a partition to match."""
    return write_folder(root, NESTED | KAGGLE_LISTS | {
        f"{ALIGNED}/000002.jpg": JPEGS["000002.jpg"][:-200], f"{ALIGNED}/162771.jpg": "no picture"})


def test_damaged_images_are_counted(tmp_path, here, capsys):
    assert celeba.main([str(damaged_pair(tmp_path / "source")), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "000002.jpg cannot be decoded" in error
    assert error.endswith("in all, 2 of 7 images cannot be used, and --skip-damaged leaves them out\n")
    assert os.listdir(tmp_path) == ["source"]


def test_skip_damaged_leaves_them_out_and_says_which(tmp_path, here, capsys):
    data = prepare(damaged_pair(tmp_path / "source"), tmp_path / "out", "--skip-damaged")
    rows = [0, 2, 4, 5, 6]
    assert data.info["file_names"] == [NAMES[row] for row in rows]
    assert data.info["skipped"] == ["000002.jpg", "162771.jpg"]
    assert [data.info["splits"][name] for name in ("train", "validation", "test")] == [2, 1, 2]
    np.testing.assert_array_equal(data.attributes, np.array(VALUES)[rows] == 1)
    check_colours(data.images, [COLOURS[row] for row in rows])
    data.check_sums()
    said = capsys.readouterr().out
    assert "skipped 2 of 7 images that cannot be used, all named in dataset.json: " in said
    assert "all                5 images" in said


def test_nothing_is_skipped_where_nothing_is_damaged(tmp_path, here, capsys):
    data = prepare(kaggle_zip(tmp_path), tmp_path / "out", "--skip-damaged")
    check_whole(data)
    assert data.info["skipped"] == []
    assert "\nskipped" not in capsys.readouterr().out


def test_a_download_of_damaged_images_alone_is_refused(tmp_path, here, capsys):
    source = write_folder(tmp_path / "source", {"000001.jpg": "no picture"})
    assert celeba.main([str(source), "--out", str(tmp_path / "out"), "--skip-damaged"]) == 1
    assert capsys.readouterr().err.endswith("none of 1 images can be used\n")
    assert os.listdir(tmp_path) == ["source"]


def test_images_that_are_converted_are_counted(tmp_path, here, capsys):
    grey = {name: encode(Image.new("L", (178, 218), 90)) for name in ("000003.jpg", "182639.jpg")}
    source = write_folder(tmp_path / "source", FLAT | {f"img_align_celeba/{name}": data for name, data in grey.items()})
    data = prepare(source, tmp_path / "out")
    check_colours(data.images[[2, 6]], [(90, 90, 90)] * 2)
    assert "converted to RGB: 2 images, the first 000003.jpg\n" in capsys.readouterr().out


def test_existing_out_is_refused_unless_overwritten(tmp_path, here, capsys):
    source = kaggle_zip(tmp_path)
    prepare(source, tmp_path / "out", "--limit", "3")
    assert celeba.main([str(source), "--out", str(tmp_path / "out")]) == 1
    assert "exists; choose another --out or give --overwrite" in capsys.readouterr().err
    assert len(Dataset(tmp_path / "out")) == 3
    check_whole(prepare(source, tmp_path / "out", "--overwrite"))


def test_a_limit_below_the_number_of_splits_is_refused(tmp_path, here, capsys):
    assert celeba.main([str(kaggle_zip(tmp_path)), "--out", str(tmp_path / "out"), "--limit", "2"]) == 1
    assert capsys.readouterr().err.endswith("error: --limit 2 leaves a split without images; give 3 or more\n")


@pytest.mark.parametrize(("options", "problem"), [
    ([], "--out"),
    (["--out", "x", "--size", "7"], "7 is not between 8 and 178"),
    (["--out", "x", "--size", "179"], "179 is not between 8 and 178"),
    (["--out", "x", "--size", "big"], "--size"),
    (["--out", "x", "--crop", "150"], "invalid choice: 150"),
    (["--out", "x", "--crop", "all"], "invalid choice: 'all'"),
    (["--out", "x", "--limit", "0"], "0 is not between 1 and 999,999"),
    (["--out", "x", "--workers", "-1"], "-1 is not between 1 and 999,999"),
])
def test_wrong_usage_is_one_line_and_status_2(capsys, options, problem):
    with pytest.raises(SystemExit) as status:
        celeba.main(["archive.zip", *options])
    error = capsys.readouterr().err
    assert status.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert problem in error


def test_interrupt_leaves_nothing_and_gives_130(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(celeba, "map_rows", interrupted)
    source = kaggle_zip(tmp_path / "source")
    assert celeba.main([str(source), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was left unfinished\n"
    assert os.listdir(tmp_path) == ["source"]


run = functools.partial(subprocess.run, capture_output=True, text=True)


def test_command_with_workers(tmp_path):
    command = [sys.executable, "-m", "data_tools.celeba", "--workers", "2", "--size", "8", "--out", tmp_path / "out"]
    done = run([*command, kaggle_zip(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert "decoding: 100%" in done.stderr
    assert "validation         2 images" in done.stdout
    check_whole(Dataset(tmp_path / "out"))


def test_a_worker_s_error_arrives_as_one_line(tmp_path):
    command = [sys.executable, "-m", "data_tools.celeba", "--workers", "1", "--out", tmp_path / "out"]
    done = run([*command, damaged_zip(tmp_path)])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {ALIGNED}/000002.jpg in ")
    assert last.endswith("download the archive again; in all, 1 of 7 images cannot be used, and --skip-damaged leaves "
                         "them out")
    assert os.listdir(tmp_path) == ["archive.zip"]
