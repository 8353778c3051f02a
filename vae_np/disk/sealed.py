"""Arrays and a JSON text in one .npz file that ends with its checksum: written whole or not at all, and without pickle.

The text is the member `info`. The comment at the end, which .npz files have for being zip files, is the SHA-256 of all
that is before it: a file that was cut off or altered anywhere is refused. Checkpoints are such files, and codecs.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from vae_np.disk.files import replacing
from vae_np.errors import CheckpointError

FORMAT_VERSION = 5  # 3 is older, and says the same of what it has
DIGITS = 64  # of a SHA-256


def save(path, arrays, info, compressed=False):
    """Write arrays {name: NumPy array} and info (anything JSON can hold) to path, whole or not at all."""
    arrays = {"info": np.array(json.dumps({"format_version": FORMAT_VERSION, **info})), **arrays}
    content = seal(arrays, np.savez_compressed if compressed else np.savez)
    with replacing(path) as partial:
        partial.write_bytes(content)


def seal(arrays, savez=np.savez):
    """The bytes of an .npz file of arrays that ends with its checksum."""
    file = io.BytesIO()
    savez(file, **arrays)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = bytes(DIGITS)
    content = file.getvalue()[:-DIGITS]
    return content + hashlib.sha256(content).hexdigest().encode()


def load(path):
    """Return (arrays, info) as they were saved. Raises CheckpointError for a file that is missing or not as it was."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    content = Path(path).read_bytes()
    try:
        if hashlib.sha256(content[:-DIGITS]).hexdigest().encode() != content[-DIGITS:]:
            raise ValueError("the checksum differs")
        arrays = dict(np.load(io.BytesIO(content), allow_pickle=False))
        info = json.loads(str(arrays.pop("info")))
        version = info["format_version"]
    except Exception:  # zipfile, NumPy and json have many of their own for a file that is something else
        raise CheckpointError(f"{path} is damaged or no checkpoint; train again, or name another file") from None
    if version not in (3, FORMAT_VERSION):
        raise CheckpointError(f"{path} has format version {version}, this program reads 3 and {FORMAT_VERSION}")
    return arrays, info


def check_arrays(arrays, expected):
    """Raise ValueError unless arrays are as expected {name: (shape, dtype)}; a None in a shape is any length."""
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        fits = array.ndim == len(shape) and all(
            length in (None, found) for length, found in zip(shape, array.shape, strict=True))
        if not fits or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape} where {dtype} {shape} was expected")
