"""Find CelebA's images and lists in any layout that they are downloaded in.

Kaggle's archive.zip holds images and lists; the official img_align_celeba.zip holds images, and its lists lie beside
it, often in folders named Anno and Eval. Either may have been unpacked. Whatever the layout, `find_celeba` answers with
the same `Download`, and the code that uses it never asks where a file came from.
"""

from dataclasses import dataclass
from pathlib import Path

from data_tools.files import PlainFile, ZipMember, files_in_folder, files_in_zip
from vae_np.errors import DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ATTRIBUTE_LIST = "list_attr_celeba"
PARTITION_LIST = "list_eval_partition"
LIST_SUFFIXES = (".csv", ".txt")
LIST_FOLDERS = ("", "Anno", "Eval")
ZIP_NAMES = ("img_align_celeba.zip", "archive.zip")


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
    files = by_name(files_in_folder(source) if source.is_dir() else files_in_zip(source, is_wanted))
    images = {name: file for name, file in files.items() if is_image(name)}
    if images:
        return Download(images, find_list(source, files, ATTRIBUTE_LIST), find_list(source, files, PARTITION_LIST))
    if source.is_dir():
        for name in ZIP_NAMES:
            if name in files:
                return find_celeba(files[name].path)
    raise DatasetError(f"{source} has no .jpg or .png images; give CelebA's zip archive or the folder it was "
                       "unpacked to")


def by_name(files):
    """The images, lists and archives among pairs of name and file, as a dictionary.

    Raises DatasetError if two share a name, or if a name has characters that would spoil a message or a terminal.
    """
    wanted = {}
    for name, file in files:
        if not is_wanted(name):
            continue
        if not name.isprintable():
            raise DatasetError(f"the name of {file} has characters that cannot be printed; rename it")
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

    Names that start with a dot are left out: macOS adds such companions to the archives that it makes.
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
