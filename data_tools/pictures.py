"""Turn a folder of pictures of one's own into a prepared dataset (see vae_np/disk/dataset.py).

    python -m data_tools.pictures FOLDER --out data/mine

Pictures may have any size, name and kind that Pillow reads, and lie in folders inside FOLDER. --attributes names a csv
file: its first line names the attributes, and each other one gives a picture's file name, then 1 or 0 for each.
"""

import sys
from pathlib import Path

from data_tools.decoding import examine_all, parser_of, split_by_content, write_dataset
from data_tools.files import PlainFile, files_in_folder, printable
from data_tools.lists import match, read_attributes, spellings, spellings_of
from data_tools.photograph import SUFFIXES
from vae_np.disk.dataset import SPLITS
from vae_np.errors import DatasetError
from vae_np.run.command import run

CODES = {spelling: value for value, words in ((1, ("1", "yes", "true")), (0, ("0", "-1", "no", "false")))
         for word in words for spelling in (word, word.capitalize(), word.upper())}


def find_pictures(folder, workers):
    """The pictures in a folder, sorted by name: {path inside it: (PlainFile, its SHA-256)}. Raises DatasetError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; give the one that has the pictures, unpacked if they are packed")
    files = {Path(file.path).relative_to(folder).as_posix(): file for _, file in files_in_folder(folder)}
    names = sorted(files)
    examined = zip(names, examine_all([files[name] for name in names], workers), strict=True) if names else ()
    pictures = {name: (files[name], digest) for name, (digest, begins_as_one) in examined
                if begins_as_one or name.lower().endswith(SUFFIXES)}
    if not pictures:
        raise DatasetError(f"{folder} has no pictures among {len(files):,} files; give the folder that has them")
    others = [files[name] for name in names if name not in pictures]
    if others:
        print(f"passed over {len(others):,} files that are no pictures, the first {others[0]}")
    copies = len(pictures) - len({digest for _, digest in pictures.values()})
    if copies:
        print(f"{copies:,} pictures are copies of others, each in the split of its original")
    return pictures


def load_attributes(path, names, partial):
    """The attribute names, and {picture's name: one byte for each}; without a list, there are none."""
    if not path:
        return [], {}
    known, file = spellings(names), PlainFile(path)
    attribute_names, rows = read_attributes(file, CODES, lambda name: name.lower().endswith(SUFFIXES) or any(
        spelling in known for spelling in spellings_of(name)))
    return attribute_names, match(rows, names, file, partial)


def prepare(folder, split, attributes, partial, workers, **options):
    """Write the prepared dataset of a folder of pictures, and print what it has.

    Raises DatasetError, with a message of one line; then nothing is left behind.
    """
    pictures = find_pictures(folder, workers)
    attribute_names, rows = load_attributes(attributes, pictures, partial)
    names = sorted(rows) if attribute_names else list(pictures)
    splits = [[] for _ in SPLITS]
    for name, place in zip(names, split_by_content([pictures[name][1] for name in names], split), strict=True):
        splits[place].append(name)
    write_dataset({name: file for name, (file, _) in pictures.items()}, splits, attribute_names, rows,
                  source=printable(Path(folder).resolve().name), workers=workers, **options)


def main(arguments=None):
    """Run the command; return its exit status."""
    parser = parser_of("python -m data_tools.pictures", __doc__, crop="square")
    parser.set_defaults(split=[0.8, 0.1, 0.1])
    parser.add_argument("folder", metavar="FOLDER", help="the folder of pictures")
    parser.add_argument("--attributes", metavar="FILE.csv", help="a list of attributes")
    return run(prepare, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
