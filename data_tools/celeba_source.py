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
from pathlib import Path

from vae_np.errors import DatasetError

# Nothing is ever unpacked to disk: of a path inside an archive only the file name is used, to tell one image from
# another. So no name can lead a write anywhere.

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ATTRIBUTE_LIST = "list_attr_celeba"
PARTITION_LIST = "list_eval_partition"
LIST_SUFFIXES = (".csv", ".txt")
LIST_FOLDERS = ("", "Anno", "Eval")
ZIP_NAMES = ("img_align_celeba.zip", "archive.zip")
FOLDERS_DEEP = 3
LARGEST_FILE = 1 << 26  # bytes of an image or a list; the longest, the list of attributes, has 26 million


@dataclass(frozen=True)
class PlainFile:
    """A file of its own."""

    path: str

    def __str__(self):
        return self.path

    def read(self):
        """Its bytes. Raises OSError, and DatasetError if it is no ordinary file: reading a pipe would never end."""
        path = Path(self.path)
        if not path.is_file():
            raise DatasetError(f"{self} is missing or no ordinary file; download or unpack it again")
        check_size(self, path.stat().st_size)
        return path.read_bytes()


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file inside a zip archive, with what the archive's directory says about it.

    A worker process that reads one needs no directory of its own. That of all of CelebA takes 130 MB and two seconds,
    in every process that opens the archive with `zipfile`.
    """

    archive: str
    name: str
    offset: int
    compressed_size: int
    size: int
    compression: int
    crc: int

    def __str__(self):
        return f"{self.name} in {self.archive}"

    def read(self):
        """Its bytes. Raises DatasetError if they are not what the archive's directory promises."""
        check_size(self, max(self.size, self.compressed_size))
        file = open_once(self.archive)
        if not 0 <= self.offset < os.fstat(file.fileno()).st_size:
            raise DatasetError(f"{self} is damaged (its place is outside the archive); download the archive again")
        try:
            file.seek(self.offset)
            signature, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            file.seek(name_length + extra_length, os.SEEK_CUR)
            data = file.read(self.compressed_size)
            if self.compression == zipfile.ZIP_DEFLATED:
                # One byte more than promised shows that there is more, and no more than that is ever unpacked.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        except (struct.error, zlib.error) as error:
            raise DatasetError(f"{self} is damaged ({error}); download the archive again") from None
        if signature != SIGNATURE or len(data) != self.size or zlib.crc32(data) != self.crc:
            raise DatasetError(f"{self} is damaged (its checksum is wrong); download the archive again")
        return data


SIGNATURE = b"PK\3\4"
# What stands before each member's data: a signature, 22 bytes that the archive's directory repeats, and the lengths of
# the member's name and of an extra field, which come next.
LOCAL_HEADER = struct.Struct("<4s22xHH")


def check_size(file, size):
    """Raise DatasetError if a file is too large to be one of CelebA's, and to be read at once."""
    if size > LARGEST_FILE:
        raise DatasetError(f"{file} has {size:,} bytes, more than any image or list of CelebA; download it again")


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
    files = by_name(files_in_folder(source) if source.is_dir() else files_in_zip(source))
    images = {name: file for name, file in files.items() if is_image(name)}
    if images:
        return Download(images, find_list(source, files, ATTRIBUTE_LIST), find_list(source, files, PARTITION_LIST))
    if source.is_dir():
        for name in ZIP_NAMES:
            if name in files:
                return find_celeba(files[name].path)
    raise DatasetError(f"{source} has no .jpg or .png images; give CelebA's zip archive or the folder it was "
                       "unpacked to")


def files_in_folder(folder):
    """The files of a folder and of those inside it, three deep, as pairs of name and PlainFile. Raises OSError."""
    for parent, subfolders, names in os.walk(folder, onerror=stop, followlinks=True):
        inside = Path(parent).relative_to(folder)
        if len(inside.parts) == FOLDERS_DEEP:
            subfolders.clear()
        subfolders.sort()
        for name in names:
            yield name, PlainFile(os.path.join(parent, name))


def stop(error):
    """Raise what os.walk would pass over: images that are silently left out."""
    raise error


def files_in_zip(path):
    """The members of a zip archive that are wanted, as pairs of name and ZipMember.

    Raises DatasetError if the file is no zip archive, breaks off, or has a member whose path leads out of it.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is neither a file nor a folder; give CelebA's zip archive or the folder it was "
                           "unpacked to")
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except Exception as error:  # a damaged directory has zipfile raise many kinds
            file.seek(0)
            raise DatasetError(f"{path} {what_it_is(file.read(512), error)}; download it again") from None
    archive = str(path)  # one string for all members: pickled with them, it is then written once
    for m in members:
        # zipfile cuts filename at a null character, and on Windows it turns each backslash into a slash.
        name = m.orig_filename.replace("\\", "/").rpartition("/")[2]
        if not is_wanted(name):
            continue
        if leads_out(m.orig_filename):
            raise DatasetError(f"{path} has a member named {m.orig_filename!r}, a path that leads out of the archive; "
                               "that is none of CelebA's, download it again")
        if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or m.flag_bits & 1:
            raise DatasetError(f"{path} is encrypted or compressed in a way that this program cannot read; "
                               "unpack it and give the folder")
        yield name, ZipMember(archive, m.orig_filename, m.header_offset, m.compress_size, m.file_size,
                              m.compress_type, m.CRC)


def what_it_is(beginning, error):
    """What is wrong with a file that zipfile cannot open, by its first bytes."""
    if not beginning:
        return "is empty"
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "is a web page, not a zip archive: usually a site's request to log in, or word that a quota is used up"
    if not beginning.startswith(SIGNATURE):
        return "is not a zip archive"
    return "breaks off before its end" if "not a zip file" in str(error) else f"is damaged ({error})"


def leads_out(path):
    """Whether a path inside an archive is absolute, goes up, or has a backslash, a drive or a colon."""
    return path.startswith("/") or "\\" in path or ":" in path or ".." in path.split("/")


def by_name(files):
    """The images, lists and archives among pairs of name and file, as a dictionary.

    Raises DatasetError if two share a name, or if a name has characters that would spoil a message or a terminal.
    """
    wanted = {}
    for name, file in files:
        if not is_wanted(name):
            continue
        if not str(file).isprintable():
            raise DatasetError(f"the name {str(file)!r} has characters that cannot be printed; rename it, or download "
                               "it again")
        if name in wanted:
            raise DatasetError(f"two files are named {name}: {wanted[name]} and {file}; give the folder that has "
                               "only the aligned images, and one list of each kind")
        wanted[name] = file
    return wanted


def is_image(name):
    """Whether a name ends as an image's does."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_wanted(name):
    """Whether a file is an image, a list, or an archive of images, going by its name.

    Names that start with a dot are left out: macOS adds such companions to the archives it makes.
    """
    stem, dot, suffix = name.rpartition(".")
    is_list = stem in (ATTRIBUTE_LIST, PARTITION_LIST) and dot + suffix in LIST_SUFFIXES
    return not name.startswith(".") and (is_image(name) or is_list or name in ZIP_NAMES)


def find_list(source, files, stem):
    """The list with this name, without its suffix, among the source's files or beside the source; None if none is."""
    names = [stem + suffix for suffix in LIST_SUFFIXES]
    for name in names:
        if name in files:
            return files[name]
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
        if len(fields) in (count, count + 1) and not fields[-1].isdigit() and len(set(fields[-count:])) == count:
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
