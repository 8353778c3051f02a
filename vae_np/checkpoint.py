"""Save and load what a training run needs to go on: atomically, and without pickle.

A checkpoint is one .npz file: flat arrays (the parameters `values`, Adam's `m` and `v`) and one JSON text `info` (model
settings, training settings, step, random state, history, and what data it was trained on).
"""

import json
from pathlib import Path

import numpy as np

from vae_np.backend import to_device
from vae_np.errors import CheckpointError
from vae_np.files import replacing
from vae_np.vae import VAE

FORMAT_VERSION = 1
# What a checkpoint of training holds; `load_model` refuses one without.
ARRAYS = ("values", "m", "v", "progress")
INFO = ("model", "training", "likelihood", "step", "random_state", "history", "data")


def save(path, arrays, info):
    """Write arrays {name: NumPy array} and info (anything JSON can hold) to path, whole or not at all."""
    text = json.dumps({"format_version": FORMAT_VERSION, **info})
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, info=np.array(text), **arrays)


def load(path):
    """Return (arrays, info) of a checkpoint. Raises CheckpointError if it is missing, damaged or of another version."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        # Opened here, since np.load leaves the file open where it finds it damaged.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
        info = json.loads(str(arrays.pop("info")))
        version = info["format_version"]
    except Exception:  # zipfile, NumPy and json have many of their own for a damaged file
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
        if arrays["values"].shape != model.values.shape:
            raise ValueError(f"{arrays['values'].size} parameters where {model.values.size} were expected")
        if not np.isfinite(arrays["values"]).all():
            raise ValueError("some parameters are not finite")
        model.values[...] = to_device(arrays["values"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold a model of this program ({error})") from None
    return model, arrays, info
