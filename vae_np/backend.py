"""The one switch: the environment variable VAE_BACKEND says what computes.

    plain    the ten files of the lecture, as they are read, on NumPy: slowly, for a debugger
    numpy    the same, sooner: some classes give way to subclasses in vae_np/fast; this is the default
    cupy     that on a GPU: xp is CuPy

Layers, losses and the optimizer compute with xp alone, so that one body of code serves both libraries. Random numbers
are always drawn by NumPy on the host: the same seed gives the same weights and the same noise on every backend.
"""

import os

import numpy as np

from vae_np.errors import BackendError

NAME = os.environ.get("VAE_BACKEND", "").strip() or "numpy"  # cmd's `set A=b && python` makes it "b "
if NAME not in ("plain", "numpy", "cupy"):
    raise BackendError(f"VAE_BACKEND={NAME}, but there is no such backend; set it to numpy, cupy or plain, or "
                       "unset VAE_BACKEND")
if NAME == "cupy":
    from vae_np.fast.cupy_setup import load_cupy

    xp = load_cupy()
else:
    xp = np

# The seam: {Conv2d: fast.arrays.Conv2d, ...}, classes of the ten files and subclasses that compute the same, up to
# rounding, sooner. vae_np/__init__.py fills it, but leaves it empty under VAE_BACKEND=plain.
FASTER = {}


class Replaceable:
    """A class that may be in FASTER: Conv2d(...) then makes the subclass, as pathlib.Path() makes a PosixPath."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(FASTER.get(cls, cls))

    def __init__(self):
        """Without one, Python would let a class that takes no arguments be called with some."""


def on_host(array):
    """Whether the numbers of an array can be looked at without waiting for a GPU."""
    return isinstance(array, np.ndarray)


def to_cpu(array):
    """The same array as a NumPy array, whichever backend made it. On a GPU the host waits for it."""
    return array if xp is np else xp.asnumpy(array)


def to_device(array):
    """A NumPy array as an array of the backend; no copy where the backend is NumPy."""
    return array if xp is np else xp.asarray(array)
