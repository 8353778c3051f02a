"""Save and load what a training run needs to go on: atomically, and without pickle.

A checkpoint is one .npz file: arrays (the parameters `values`, Adam's `m` and `v`, and where the epoch in progress
stands) and one JSON text `info` (model settings, training settings, step, random state, history, and what data it was
trained on). The comment at the end of the file, which .npz files have for being zip files, is the SHA-256 of all that
is before it: a file that was cut off or altered anywhere is refused.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from vae_np.backend import to_device
from vae_np.errors import CheckpointError
from vae_np.files import replacing
from vae_np.vae import VAE

FORMAT_VERSION = 3
# What a checkpoint of training holds; `load_model` refuses one without.
ARRAYS = ("values", "m", "v", "progress", "order", "terms")
INFO = ("model", "training", "likelihood", "variance", "step", "random_state", "history", "data")
DIGITS = 64  # of a SHA-256


def save(path, arrays, info):
    """Write arrays {name: NumPy array} and info (anything JSON can hold) to path, whole or not at all."""
    content = sealed({"info": np.array(json.dumps({"format_version": FORMAT_VERSION, **info})), **arrays})
    with replacing(path) as partial:
        partial.write_bytes(content)


def sealed(arrays):
    """The bytes of an .npz file of arrays that ends with its checksum."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = bytes(DIGITS)
    content = file.getvalue()[:-DIGITS]
    return content + hashlib.sha256(content).hexdigest().encode()


def load(path):
    """Return (arrays, info) of a checkpoint. Raises CheckpointError if it is missing, damaged or of another version."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    content = path.read_bytes()
    try:
        if hashlib.sha256(content[:-DIGITS]).hexdigest().encode() != content[-DIGITS:]:
            raise ValueError("the checksum differs")
        with np.load(io.BytesIO(content), allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
        info = json.loads(str(arrays.pop("info")))
        version = info["format_version"]
    except Exception:  # zipfile, NumPy and json have many of their own for a file that is something else
        raise CheckpointError(f"{path} is damaged or no checkpoint; train again, or name another file") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}")
    return arrays, info


def load_model(path):
    """Return (model, arrays, info) of a checkpoint: a VAE with the trained parameters, and what `load` returns.

    Raises CheckpointError as `load` does, and if the checkpoint is not that of a VAE.
    """
    arrays, info = load(path)
    missing = [name for name in ARRAYS if name not in arrays] + [name for name in INFO if name not in info]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is no checkpoint of training")
    try:
        model = VAE(**info["model"])
        count, size = model.values.size, model.image_size
        for name, shape, dtype in (("values", (count,), "float32"), ("m", (count,), "float32"),
                                   ("v", (count,), "float32"), ("progress", (None, None, size, size, 3), "uint8"),
                                   ("order", (None,), "int64"), ("terms", (None, None), "float64")):
            array = arrays[name]
            if array.dtype != dtype or len(array.shape) != len(shape) or any(
                    expected not in (None, length) for expected, length in zip(shape, array.shape, strict=True)):
                raise ValueError(f"{name} is {array.dtype} {array.shape} where {dtype} {shape} was expected")
        if not np.isfinite(arrays["values"]).all():
            raise ValueError("some parameters are not finite")
        model.values[...] = to_device(arrays["values"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold a model of this program ({error})") from None
    return model, arrays, info
