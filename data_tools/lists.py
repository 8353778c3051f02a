"""Read lists that say something about each picture, in any form that people's programs write, and match the names.

A picture's line has its file name and values, parted by commas, semicolons, tabs or blanks, and perhaps quoted.
"""

import csv
import posixpath
import re

from vae_np.errors import DatasetError

NAME_FIRST = re.compile(r"\s*(\S.*?\.(?:jpe?g|png))(\s.*)?", re.IGNORECASE)  # of a line without a delimiter


def read_attributes(file, codes, is_name):
    """Read a list of attributes: (attribute names, {picture's name: one byte per attribute, 1 or 0}).

    Raises DatasetError, as `read_list` does, and if no line names the attributes.
    """
    preamble, rows = read_list(file, codes, is_name)
    count = len(next(iter(rows.values())))
    for fields in preamble:
        # The name of the image column may be there or not. Some copies have a line of column numbers as well.
        if len(fields) in (count, count + 1) and not fields[-1].isdigit() and len(set(fields[-count:])) == count:
            return fields[-count:], rows
    raise DatasetError(f"{file} has {count} values for each image but no line that names {count} attributes; "
                       "begin it with one, such as: image,Smiling,Young")


def read_partition(file, is_name):
    """Read a partition list: {picture's name: 0 (train), 1 (validation) or 2 (test)}. Raises DatasetError."""
    _, rows = read_list(file, {"0": 0, "1": 1, "2": 2}, is_name)
    if len(next(iter(rows.values()))) != 1:
        raise DatasetError(f"{file} has several values for each image, not one partition; is it another list, renamed?")
    return {name: values[0] for name, values in rows.items()}


def read_list(file, codes, is_name):
    """Read a list: (the lines before the first picture, as lists of their fields, {picture's name: values}).

    codes, such as {"1": 1, "-1": 0}, says which values may occur, and the byte that stands for each; is_name, which
    first fields are pictures' names. Raises DatasetError for an unknown value, a line that is unlike the others, and a
    list of nothing.
    """
    preamble, rows = [], {}
    width = None
    for number, (name, *values) in lines(file):
        if not is_name(name):
            if rows and name:
                raise DatasetError(f"{file}, line {number}: {name!r} is no image's file name; mend that line")
            preamble.append([name, *values])
            continue
        width = width or len(values) or 1
        if name in rows:
            raise DatasetError(f"{file}, line {number}: {name} is listed twice; remove one of its lines")
        if len(values) != width:
            raise DatasetError(f"{file}, line {number}: values of {name}: {len(values)}, expected {width}; "
                               "mend that line")
        try:
            rows[name] = bytes(map(codes.__getitem__, values))
        except KeyError as unknown:
            raise DatasetError(f"{file}, line {number}: {name} has the value {unknown}, expected one of "
                               f"{', '.join(codes)}; mend that line") from None
    if not rows:
        raise DatasetError(f"{file} lists no images; a line has an image's file name, then its values")
    return preamble, rows


def lines(file):
    """Yield the number and the fields of each line, at least one. Raises DatasetError if the file is no such text."""
    text = decode_text(file)
    delimiter = max(",;\t", key=text.count)
    if delimiter not in text:
        for number, line in enumerate(text.splitlines(), start=1):
            match = NAME_FIRST.fullmatch(line)
            yield number, [match[1], *(match[2] or "").split()] if match else line.split() or [""]
        return
    reader = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            while fields and not fields[-1]:  # of a spreadsheet's empty columns
                fields.pop()
            yield reader.line_num, [field.strip() for field in fields] or [""]
    except csv.Error as error:
        raise DatasetError(f"{file}, line {reader.line_num}: {error}; mend that line") from None


def decode_text(file):
    """The text of a file. Raises DatasetError if it is none."""
    data = file.read()
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is not a text file in UTF-8 or UTF-16; save it as one") from None


def match(rows, images, file, partial=False):
    """The rows of a list for the images that are there: {image's name: values}.

    Lists may call an image by a longer or shorter path, in other letters, or by another suffix, where it is clear which
    one is meant. Raises DatasetError if the list or the images lack what the other has, unless a partial match will do.
    """
    found = {name: rows[name] for name in images if name in rows}
    known, absent = spellings(name for name in images if name not in rows), []
    for name, values in rows.items():
        if name not in found:
            image = next(filter(None, map(known.get, spellings_of(name))), None)
            if image in found:
                raise DatasetError(f"{file} lists {image} twice, the second time as {name}; remove one of its lines")
            if image:
                found[image] = values
            else:
                absent.append(name)
    unlisted = [name for name in images if name not in found]
    for names, total, problem in (
        (absent, len(rows), "lists {total:,} images, of which {count:,} are absent, the first {first}; get those"),
        (unlisted, len(images), "leaves out {count:,} of {total:,} images, the first {first}; list those"),
    ):
        if names and not (partial and found):
            problem = problem.format(total=total, count=len(names), first=min(names))
            raise DatasetError(f"{file} {problem}, or go on without them: --partial")
    if absent or unlisted:
        print(f"{len(found):,} images are there and listed; {file} lists {len(absent):,} more, and leaves out "
              f"{len(unlisted):,}")
    return found


def spellings(names):
    """{what a list may call an image: the image's name}, without what could mean two of them."""
    known = {}
    for name in names:
        for spelling in set(spellings_of(name)):
            known[spelling] = None if spelling in known else name
    return known


def spellings_of(name):
    """What an image may be called, the most exact first: by more or less of its path, with or without its suffix."""
    parts = name.replace("\\", "/").casefold().split("/")
    for start in range(len(parts)):
        path = "/".join(parts[start:])
        yield path
        yield posixpath.splitext(path)[0]
