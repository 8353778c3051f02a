"""Save and load what a training run needs to go on: atomically, and without pickle.

A checkpoint is one .npz file (disk/sealed.py): arrays (the parameters `values`, Adam's `m` and `v`, and where the epoch
in progress stands) and one JSON text `info` (model settings, training settings, step, random state, history, and what
data it was trained on). Where a prior was fitted to the codes after training, its name is in `info`, and its arrays are
those whose names start with "prior_"; training on writes a checkpoint without, since codes move.

What is passed on has weights alone, in half the bits: no training can go on from it, and all else is as before.
"""

import sys
from pathlib import Path

import numpy as np

from vae_np.backend import to_cpu, to_device
from vae_np.disk.files import hold
from vae_np.disk.sealed import check_arrays, load, save
from vae_np.errors import CheckpointError, TrainingError
from vae_np.study.priors import PRIORS, prior_kind
from vae_np.vae import VAE

# What a checkpoint holds; `load_model` refuses one without. Weights alone have nothing of STATE.
ARRAYS = ("values", "m", "v", "progress", "order", "terms")
STATE = ARRAYS[1:]
INFO = ("model", "training", "likelihood", "step", "random_state", "history", "data")
FORMAT_3 = {"centred": False, "shortcut": False, "steady": False}  # what a model of that format has not
PREFIX = "prior_"  # of the names of a prior's arrays
STANDARD = "standard"  # the prior that a model was trained with


def load_model(path):
    """Return (model, arrays, info) of a checkpoint: a VAE with the trained parameters, and what `load` returns.

    Numbers of float16 are float32 here. Raises CheckpointError as `load` does, and if the checkpoint is not that of a
    VAE.
    """
    arrays, info = load(path)
    arrays = {name: array.astype("float32") if array.dtype == "float16" else array for name, array in arrays.items()}
    names = ARRAYS if arrays.keys() & set(STATE) else ("values",)
    missing = [name for name in names if name not in arrays] + [name for name in INFO if name not in info]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is no checkpoint of training")
    try:
        model = VAE(**FORMAT_3 | info["model"])
        count, size = model.values.size, model.image_size
        expected = {"values": ((count,), "float32"), "m": ((count,), "float32"), "v": ((count,), "float32"),
                    "progress": ((None, None, size, size, 3), "uint8"), "order": ((None,), "int64"),
                    "terms": ((None, None), "float64")}
        check_arrays(arrays, {name: expected[name] for name in names})
        if not np.isfinite(arrays["values"]).all():
            raise ValueError("some parameters are not finite")
        model.values[...] = to_device(arrays["values"])
        model.prior = restored_prior(path, arrays, info, model.latent_dim)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold a model of this program ({error})") from None
    return model, arrays, info


def load_training(path):
    """load_model; raises CheckpointError for weights alone, too."""
    model, arrays, info = load_model(path)
    if "m" not in arrays:
        raise CheckpointError(f"{path} holds weights alone, from which no training can go on; leave --resume out, or "
                              "give the --out of a training")
    return model, arrays, info


def restored_prior(path, arrays, info, latent_dim):
    """The prior that a checkpoint holds, None for N(0, I). Raises ValueError unless it is whole and fits.

    A kind that is not known, such as one that is no longer part of this program, is left out, and a note says so: the
    model is whole without it, and another is fitted within a minute.
    """
    name = info.get("prior", STANDARD)
    if name not in PRIORS:
        print(f"note: the prior of {path}, {name!r}, is not known (any more), so samples come from N(0, I); fit "
              "another with lessons/05_sample.py --prior", file=sys.stderr)
        return None
    kind, stored = prior_kind(name), prior_arrays(arrays)
    expected = kind.shapes(latent_dim)
    if set(stored) != set(expected):
        raise ValueError(f"its prior {name!r} consists of {', '.join(stored) or 'nothing'}")
    check_arrays(stored, expected)
    if not all(np.isfinite(array).all() for array in stored.values()):
        raise ValueError("some numbers of its prior are not finite")
    return None if name == STANDARD else kind(**stored)


def prior_arrays(arrays):
    """Those of a checkpoint's arrays that belong to its prior, by the names that the prior knows them by."""
    return {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}


def arrays_of_prior(prior):
    """A prior's arrays, by the names that a checkpoint knows them by."""
    return {PREFIX + name: array for name, array in prior.arrays.items()}


def save_weights(path, model, info):
    """Write what it takes to use a model, and `info` of its checkpoint: a file to pass on, a sixth as large.

    float32 becomes float16; of the folder with the data the name is kept, which is what may be known elsewhere. Raises
    CheckpointError for numbers that float16 cannot hold.
    """
    arrays = {"values": to_cpu(model.values), **(arrays_of_prior(model.prior) if model.prior else {})}
    with np.errstate(over="ignore"):
        halves = {name: array.astype("float16") if array.dtype == "float32" else array
                  for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in halves.values()):
        raise CheckpointError(f"some weights are too large for {path}: float16 ends at 65,504")
    folder = Path(info["data"]["folder"]).name
    save(path, halves, {**info, "data": {**info["data"], "folder": folder}}, compressed=True)


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
        prior = model.prior or prior_kind(STANDARD)(model.latent_dim)
        save(path, arrays | arrays_of_prior(prior), {**info, "prior": prior.name})
    finally:
        lock.release()
