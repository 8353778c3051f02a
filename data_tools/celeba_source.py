"""Find CelebA's images and lists in any layout that they are downloaded in, and read the lists.

Kaggle's archive.zip holds images and lists; the official img_align_celeba.zip holds images, and its lists lie beside
it, often in folders named Anno and Eval. Either may have been unpacked. Whatever the layout, `find_celeba` answers with
the same `Download`, and the code that uses it never asks where a file came from.
"""

import functools
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vae_np.errors import DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ATTRIBUTE_LIST = "list_attr_celeba"
PARTITION_LIST = "list_eval_partition"
LIST_SUFFIXES = (".csv", ".txt")
LIST_FOLDERS = ("", "Anno", "Eval")
ZIP_NAMES = ("img_align_celeba.zip", "archive.zip")
FOLDERS_DEEP = 3


@dataclass(frozen=True)
class PlainFile:
    """A file of its own."""

    path: str

    def __str__(self):
        return self.path

    def read(self):
        """Its bytes. Raises OSError."""
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive, with what the archive's directory says about it.

    A worker process that reads one needs no directory of its own. That of all of CelebA takes 130 MB and two seconds,
    in every process that opens the archive with `zipfile`.
    """

    archive: str
    name: str
    offset: int
    compressed_size: int
    compression: int
    crc: int

    def __str__(self):
        return f"{self.name} in {self.archive}"

    def read(self):
        """Its bytes. Raises DatasetError if they are not what the archive's directory promises."""
        file = open_once(self.archive)
        file.seek(self.offset)
        header = file.read(LOCAL_HEADER.size)
        try:
            signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
            file.seek(name_length + extra_length, os.SEEK_CUR)
            data = file.read(self.compressed_size)
            if self.compression == zipfile.ZIP_DEFLATED:
                data = zlib.decompress(data, wbits=-zlib.MAX_WBITS)
        except (struct.error, zlib.error) as error:
            raise DatasetError(f"{self} is damaged ({error}); download the archive again") from None
        if signature != SIGNATURE or zlib.crc32(data) != self.crc:
            raise DatasetError(f"{self} is damaged (its checksum is wrong); download the archive again")
        return data


SIGNATURE = b"PK\3\4"
# What stands before each member's data: a signature, 22 bytes that the archive's directory repeats, and the lengths of
# the member's name and of an extra field, which come next.
LOCAL_HEADER = struct.Struct("<4s22xHH")


@functools.cache
def open_once(path):
    """The opened file, which each process opens once and keeps."""
    return open(path, "rb")


@dataclass
class Download:
    """What one copy of CelebA consists of.

    images            {"000001.jpg": PlainFile or ZipMember}
    attribute_list    the list of attributes, or None
    partition_list    the list that assigns images to splits, or None
    """

    images: dict
    attribute_list: PlainFile | ZipMember | None
    partition_list: PlainFile | ZipMember | None


def find_celeba(source):
    """Find the images and lists of a zip archive, or of a folder that has either the images or the archive.

    Lists are looked for inside, then beside the source and one folder up, there also in Anno and Eval.
    Raises DatasetError if there is no such source, or it has no images.
    """
    source = Path(source)
    if not source.exists():
        raise DatasetError(f"{source} does not exist; give CelebA's zip archive or the folder it was unpacked to")
    files = files_in_folder(source) if source.is_dir() else files_in_zip(source)
    images = images_by_name(files)
    if images:
        return Download(images, find_list(source, files, ATTRIBUTE_LIST), find_list(source, files, PARTITION_LIST))
    if source.is_dir():
        archives = [file.path for name, file in files.items() if PurePosixPath(name).name in ZIP_NAMES]
        if archives:
            return find_celeba(archives[0])
    raise DatasetError(f"{source} has no .jpg or .png images; give CelebA's zip archive or the folder it was "
                       "unpacked to")


def files_in_folder(folder):
    """The files of a folder and of those inside it, three deep: {"img_align_celeba/000001.jpg": PlainFile}."""
    files = {}
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        inside = Path(parent).relative_to(folder)
        if len(inside.parts) == FOLDERS_DEEP:
            subfolders.clear()
        subfolders.sort()
        prefix = "" if inside == Path() else inside.as_posix() + "/"
        files.update((prefix + name, PlainFile(os.path.join(parent, name))) for name in names)
    return files


def files_in_zip(path):
    """The members of a zip archive: {"img_align_celeba/000001.jpg": ZipMember}.

    Raises DatasetError if the file is no zip archive or breaks off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        with open(path, "rb") as file:
            begins_well = file.read(len(SIGNATURE)) == SIGNATURE
        problem = "breaks off before its end" if begins_well else "is not a zip archive (perhaps a saved web page)"
        raise DatasetError(f"{path} {problem}; download it again") from None
    readable = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    for member in members:
        if member.compress_type not in readable or member.flag_bits & 1:
            raise DatasetError(f"{path} is encrypted or compressed in a way that this program cannot read; "
                               "unpack it and give the folder")
    # One string for all members: pickled with them, it is then written once.
    archive = str(path)
    return {m.filename: ZipMember(archive, m.filename, m.header_offset, m.compress_size, m.compress_type, m.CRC)
            for m in members}


def images_by_name(files):
    """The image files among {path: file}, by file name alone.

    Names that start with a dot are left out: macOS adds such companions to the archives it makes.
    Raises DatasetError if two images share a name.
    """
    images = {}
    for path, file in files.items():
        name = PurePosixPath(path).name
        if name.startswith(".") or not is_image(name):
            continue
        if name in images:
            raise DatasetError(f"two images are named {name}: {images[name]} and {file}; give the folder that has "
                               "only the aligned ones")
        images[name] = file
    return images


def is_image(name):
    """Whether a name ends as an image's does."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def find_list(source, files, stem):
    """The list with this name, without its suffix, among the source's files or beside the source; None if none is."""
    names = [stem + suffix for suffix in LIST_SUFFIXES]
    inside = {PurePosixPath(path).name: file for path, file in files.items()}
    for name in names:
        if name in inside:
            return inside[name]
    here = source.absolute()
    for base in (here.parent, here.parent.parent):
        for path in (base / folder / name for folder in LIST_FOLDERS for name in names):
            if path.is_file():
                return PlainFile(str(path))
    return None


def read_attributes(file):
    """Read the attribute list: (attribute names, {"000001.jpg": one byte per attribute, 1 or 0}).

    Raises DatasetError, as `read_list` does, and if no line names the attributes.
    """
    preamble, rows = read_list(file, {"1": 1, "-1": 0})
    count = len(next(iter(rows.values())))
    for fields in preamble:
        # The name of the image column may be there or not. Some copies have a line of column numbers as well.
        if len(fields) in (count, count + 1) and not fields[-1].isdigit():
            return fields[-count:], rows
    raise DatasetError(f"{file} has {count} values for each image but no line that names {count} attributes; "
                       "download the list again")


def read_partition(file):
    """Read the partition list: {"000001.jpg": 0 (train), 1 (validation) or 2 (test)}. Raises DatasetError."""
    _, rows = read_list(file, {"0": 0, "1": 1, "2": 2})
    if len(next(iter(rows.values()))) != 1:
        raise DatasetError(f"{file} has several values for each image, not one partition; download the list again")
    return {name: values[0] for name, values in rows.items()}


def read_list(file, codes):
    """Read a list in any of its variants: (the lines before the first image, {"000001.jpg": values}).

    An image's line has its file name and values, parted by commas or blanks; codes, such as {"1": 1, "-1": 0}, says
    which values may occur, and the byte that stands for each. Other lines come as lists of their fields.
    Raises DatasetError for an unknown value, a line that is unlike the others, and a list of nothing.
    """
    preamble, rows = [], {}
    width = None
    for number, line in enumerate(decode_text(file).splitlines(), start=1):
        name, *values = line.replace(",", " ").split() or [""]
        if not is_image(name):
            if rows and name:
                raise DatasetError(f"{file}, line {number}: {name!r} is no image's file name; download the list again")
            preamble.append([name, *values])
            continue
        width = width or len(values) or 1
        if name in rows:
            raise DatasetError(f"{file}, line {number}: {name} is listed twice; download the list again")
        if len(values) != width:
            raise DatasetError(f"{file}, line {number}: values of {name}: {len(values)}, expected {width}; "
                               "download the list again")
        try:
            rows[name] = bytes(map(codes.__getitem__, values))
        except KeyError as unknown:
            raise DatasetError(f"{file}, line {number}: {name} has the value {unknown}, expected one of "
                               f"{', '.join(codes)}; download the list again") from None
    if not rows:
        raise DatasetError(f"{file} lists no images; download it again")
    return preamble, rows


def decode_text(file):
    """The text of a file. Raises DatasetError if it is none."""
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is not a text file; download it again") from None
