"""The files of a folder or of a zip archive, as things to read, whichever of both they lie in."""

import functools
import os
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from vae_np.errors import DatasetError

# Nothing is ever unpacked to disk: of a path inside an archive only the file name is used, to tell one image from
# another. So no name can lead a write anywhere.

LARGEST_FILE = 1 << 27  # bytes of a picture or a list; CelebA's longest, the list of attributes, has 26 million
PART = re.compile(r".*\.(z?[0-9]{2,3}|part[0-9]+\.rar|r[0-9]{2})", re.IGNORECASE)  # names of parts of split archives


def printable(text):
    """A text, with what would spoil a message or a terminal in escapes."""
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True)
class PlainFile:
    """A file of its own."""

    path: str

    def __str__(self):
        return printable(self.path)

    def read(self):
        """Its bytes. Raises DatasetError if there are none, or it is no ordinary file: a pipe's would never end."""
        path = Path(self.path)
        try:
            if not path.is_file():
                raise DatasetError(f"{self} is missing or no ordinary file")
            check_size(self, path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{self} cannot be read ({error.strerror})") from None


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
        return printable(f"{self.name} in {self.archive}")

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
    """Raise DatasetError if a file is too large to be read at once."""
    if size > LARGEST_FILE:
        raise DatasetError(f"{file} has {size:,} bytes, too many for a picture or a list")


@functools.cache
def open_once(path):
    """The opened file, which each process opens once and keeps."""
    return open(path, "rb")


def files_in_folder(folder):
    """The files of a folder and of those inside it, as pairs of name and PlainFile. Raises OSError.

    Names that start with a dot are left out, of folders, too: they are for programs, such as thumbnails.
    """
    seen = set()
    for parent, subfolders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(parent)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        for name in names if real not in seen else ():
            if not name.startswith("."):
                yield name, PlainFile(os.path.join(parent, name))
        seen.add(real)  # a link may lead to a folder that was there before, and then for ever


def stop(error):
    """Raise what os.walk would pass over: images that are silently left out."""
    raise error


def files_in_zip(path, is_wanted):
    """The members of a zip archive whose names are wanted, as pairs of name and ZipMember.

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
            raise DatasetError(f"{path} {what_it_is(path.name, file.read(512), error)}") from None
    if any(m.volume for m in members):
        raise DatasetError(f"{path} {IS_PART}")
    archive = str(path)  # one string for all members: pickled with them, it is then written once
    for m in members:
        # zipfile cuts filename at a null character. Some archives made on Windows have backslashes for slashes.
        inside = m.orig_filename.replace("\\", "/")
        name = inside.rpartition("/")[2]
        if not is_wanted(name):
            continue
        if leads_out(inside):
            raise DatasetError(f"{path} has a member named {m.orig_filename!r}, a path that leads out of the archive; "
                               "that is none of CelebA's, download it again")
        if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or m.flag_bits & 1:
            raise DatasetError(f"{path} is encrypted or compressed in a way that this program cannot read; "
                               "unpack it and give the folder")
        yield name, ZipMember(archive, m.orig_filename, m.header_offset, m.compress_size, m.file_size,
                              m.compress_type, m.CRC)


IS_PART = ("is one part of a split archive; unpack the first with all others beside it, as 7-Zip can, and give the "
           "folder")


def what_it_is(name, beginning, error):
    """What is wrong with a file that zipfile cannot open, by its name and first bytes, and what to do."""
    if not beginning:
        return "is empty; download it again"
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return ("is a web page, not a zip archive: usually a site's request to log in, or word that a quota is used "
                "up; download it again")
    if PART.fullmatch(name) or beginning.startswith(b"PK\7\x08"):
        return IS_PART
    if not beginning.startswith(SIGNATURE):
        return "is not a zip archive; if it is one of another kind, unpack it and give the folder"
    reason = "breaks off before its end" if "not a zip file" in str(error) else f"is damaged ({error})"
    return f"{reason}; download it again"


def leads_out(path):
    """Whether a path inside an archive is absolute, goes up, or has a drive or a colon."""
    return path.startswith("/") or ":" in path or ".." in path.split("/")
