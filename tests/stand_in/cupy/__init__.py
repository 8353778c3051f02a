"""A strict stand-in for CuPy, for machines without a GPU: arrays in the host's memory, and CuPy's rules.

    VAE_BACKEND=cupy PYTHONPATH=tests/stand_in python -m pytest

What CuPy refuses, or what makes a GPU wait unseen, is refused or counted here: arrays of the host and of the device in
one expression, names and keywords that CuPy does not have, reading what was never written. It knows no more of CuPy
than manifest.json lists, and is stricter where that shows mistakes: functions of NumPy's do not take arrays of the
device, and an index made on the host must be uploaded by hand. See stand_in.py for counts and simulated faults,
kernel.hpp for kernels.
"""

import numpy as _np

from . import _array, _cuda, _memory, stand_in
from ._array import ndarray
from ._kernel import ElementwiseKernel as ElementwiseKernel


def asarray(a, dtype=None):
    """An array of the device with these numbers: the same one if it is on the device, else a copy, an upload."""
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    return _array.uploaded(a, dtype)


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else _np.asarray(a)


def empty(shape, dtype=float):
    return _array.fresh(_np.empty(shape, dtype))


def empty_like(prototype, dtype=None):
    if not isinstance(prototype, ndarray):
        raise _array.refuse(prototype)
    return _array.fresh(_np.empty_like(prototype._host, dtype))


def get_default_memory_pool():
    return _memory.pool


def _find(path, numpys, name):
    """The name in a module of CuPy's, as NumPy's module has it or as an error that says what is missing where."""
    if name.startswith("__"):
        raise AttributeError(name)
    kind, _ = stand_in.require(path, name)
    value = getattr(numpys, name, None)
    if kind == "numpy":
        return value
    if kind in ("function", "ufunc") and callable(value):
        return _array.forward(path, name, value)
    raise NotImplementedError(f"the stand-in has no {path}.{name}, which CuPy has")


class _Module:
    """A module of CuPy's: the names given, and those in the manifest that a module of NumPy's has, too."""

    def __init__(self, path, numpys=None, **own):
        vars(self).update(own, _path=path, _numpys=numpys)

    def __getattr__(self, name):
        return _find(self._path, self._numpys, name)


cuda = _Module("cupy.cuda", Device=_cuda.Device, runtime=_Module("cupy.cuda.runtime", **_cuda.RUNTIME))
lib = _Module("cupy.lib", stride_tricks=_Module("cupy.lib.stride_tricks", _np.lib.stride_tricks))


def __getattr__(name):
    value = _find("cupy", _np, name)
    globals()[name] = value
    return value
