"""Save and load what a training run needs to go on: atomically, and without pickle.

A checkpoint is one .npz file: arrays (the parameters `values`, Adam's `m` and `v`, and where the epoch in progress
stands) and one JSON text `info` (model settings, training settings, step, random state, history, and what data it was
trained on). Where a prior was fitted to the codes after training, its name is in `info`, and its arrays are those whose
names start with "prior_"; training on writes a checkpoint without, since codes move. The comment at the end of the
file, which .npz files have for being zip files, is the SHA-256 of all that is before it: a file that was cut off or
altered anywhere is refused.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from vae_np.backend import to_cpu, to_device
from vae_np.disk.files import hold, replacing
from vae_np.errors import CheckpointError, TrainingError
from vae_np.study.mixture import Mixture
from vae_np.study.priors import Gaussian, Standard
from vae_np.study.two_stage import TwoStage
from vae_np.vae import VAE

FORMAT_VERSION = 3
# What a checkpoint of training holds; `load_model` refuses one without.
ARRAYS = ("values", "m", "v", "progress", "order", "terms")
INFO = ("model", "training", "likelihood", "variance", "step", "random_state", "history", "data")
DIGITS = 64  # of a SHA-256
PRIORS = {kind.name: kind for kind in (Standard, Gaussian, Mixture, TwoStage)}
PREFIX = "prior_"  # of the names of a prior's arrays


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
        check_arrays(arrays, {"values": ((count,), "float32"), "m": ((count,), "float32"), "v": ((count,), "float32"),
                              "progress": ((None, None, size, size, 3), "uint8"), "order": ((None,), "int64"),
                              "terms": ((None, None), "float64")})
        if not np.isfinite(arrays["values"]).all():
            raise ValueError("some parameters are not finite")
        model.values[...] = to_device(arrays["values"])
        model.prior = restored_prior(arrays, info, model.latent_dim)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold a model of this program ({error})") from None
    return model, arrays, info


def check_arrays(arrays, expected):
    """Raise ValueError unless arrays are as expected {name: (shape, dtype)}; a None in a shape is any length."""
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or len(array.shape) != len(shape) or any(
                length not in (None, found) for length, found in zip(shape, array.shape, strict=True)):
            raise ValueError(f"{name} is {array.dtype} {array.shape} where {dtype} {shape} was expected")


def restored_prior(arrays, info, latent_dim):
    """The prior that a checkpoint holds, N(0, I) where it names none. Raises ValueError unless it is whole and fits."""
    name = info.get("prior", Standard.name)
    if name not in PRIORS:
        raise ValueError(f"its prior {name!r} is unknown")
    kind, expected = PRIORS[name], PRIORS[name].shapes(latent_dim)
    stored = prior_arrays(arrays)
    if set(stored) != set(expected):
        raise ValueError(f"its prior {name!r} consists of {', '.join(stored) or 'nothing'}")
    check_arrays(stored, expected)
    if not all(np.isfinite(array).all() for array in stored.values()):
        raise ValueError("some numbers of its prior are not finite")
    return Standard(latent_dim) if kind is Standard else kind(**stored)


def prior_arrays(arrays):
    """Those of a checkpoint's arrays that belong to its prior, by the names that the prior knows them by."""
    return {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}


def store_prior(path, model):
    """Put model.prior in the place of the prior that the model's checkpoint holds, and leave all else as it is.

    Raises CheckpointError if the file holds other parameters than the model by now, or a training is at work in its
    folder: the prior would not fit what that will write.
    """
    path = Path(path)
    try:
        lock = hold(path.parent)
    except TrainingError:
        raise CheckpointError(f"a training is writing to {path.parent}; wait for it, then fit the prior") from None
    try:
        arrays, info = load(path)
        if not np.array_equal(arrays.get("values"), to_cpu(model.values)):
            raise CheckpointError(f"{path} has changed since the prior was fitted to its codes; fit it again")
        for name in prior_arrays(arrays):
            del arrays[PREFIX + name]
        arrays |= {PREFIX + name: array for name, array in model.prior.arrays.items()}
        save(path, arrays, {**info, "prior": model.prior.name})
    finally:
        lock.release()
