"""The one switch: xp is NumPy or CuPy, chosen by the environment variable VAE_BACKEND ("numpy" or "cupy").

Layers, losses and the optimizer compute with xp alone, so that one body of code serves both. Random numbers are always
drawn by NumPy on the host: the same seed then gives the same weights and the same noise on either backend.
"""

import os

import numpy as np


class BackendError(SystemExit):
    """The chosen backend cannot be used. As a SystemExit, it ends a program with its one line and status 1."""


def _load(name):
    if name == "numpy":
        return np
    if name != "cupy":
        raise BackendError(f"error: VAE_BACKEND={name} is not a backend; set it to numpy or cupy")
    try:
        import cupy
    except ImportError:
        raise BackendError("error: VAE_BACKEND=cupy, but CuPy is not installed; pip install cupy-cuda12x (or, in "
                           "a clone, -e .[cuda12]), or 13 for 12, whichever CUDA version nvidia-smi shows") from None
    # Without a GPU the import succeeds and the first array fails with a message about the driver.
    if not cupy.cuda.is_available():
        raise BackendError("error: VAE_BACKEND=cupy, but CuPy finds no GPU; check nvidia-smi, or unset VAE_BACKEND")
    return cupy


NAME = os.environ.get("VAE_BACKEND") or "numpy"
xp = _load(NAME)


def to_cpu(array):
    """The same array as a NumPy array, whichever backend made it."""
    return array if xp is np else xp.asnumpy(array)


def to_device(array):
    """A NumPy array as an array of the backend; no copy where the backend is NumPy."""
    return array if xp is np else xp.asarray(array)
