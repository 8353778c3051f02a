"""A strict stand-in for CuPy, for machines without a GPU: arrays in the host's memory, and CuPy's rules.

    VAE_BACKEND=cupy PYTHONPATH=tests/stand_in python -m pytest

What CuPy refuses, or what makes a GPU wait unseen, is refused or counted here: arrays of the host and of the device in
one expression, names and keywords that CuPy does not have (manifest.json lists them), reading what was never written.
It is stricter than CuPy where that shows mistakes: functions of NumPy's do not take arrays of the device, and an index
made on the host must be uploaded by hand. See stand_in.py for counts and simulated faults, kernel.hpp for kernels.
Random numbers are NumPy's, not CuPy's.
"""

import sys as _sys
import types as _types

import numpy as _np

from . import _array, _cuda, _memory, _random, stand_in
from ._array import ndarray
from ._kernel import ElementwiseKernel as ElementwiseKernel

__version__ = stand_in.VERSION


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """An array of the device with these numbers: the same one if it is on the device, else a copy, an upload."""
    return array(a, dtype, bool(copy), order or "K", blocking=blocking)


def asanyarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return asarray(a, dtype, order, copy=copy, blocking=blocking)


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        return obj if not copy and dtype in (None, obj.dtype) else obj.astype(dtype or obj.dtype, order=order)
    if isinstance(obj, (list, tuple)) and any(isinstance(part, ndarray) for part in obj):
        return ndarray._of(_np.array(_array.to_host(obj, []), dtype, order=order, ndmin=ndmin))
    return _array.uploaded(obj, dtype, order=order, ndmin=ndmin)


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else _np.asarray(a, order=order)


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    if not isinstance(prototype, ndarray):
        raise _array.refuse(prototype)
    with _memory.allocating():
        made = ndarray._of(_np.empty_like(prototype._host, dtype, order=order, shape=shape))
    _array.poison(made._host)
    return made


def get_array_module(*args):
    return _sys.modules[__name__] if any(isinstance(arg, ndarray) for arg in args) else _np


def get_default_memory_pool():
    return _memory.pool


def is_available():
    return _cuda.is_available()


def _find(path, function_of, name):
    """The name in a namespace of CuPy's, as NumPy has it or as an error that says what is missing where."""
    if name.startswith("__"):
        raise AttributeError(name)
    kind, _ = stand_in.require(path, name)
    if kind == "numpy" and hasattr(_np, name):
        return getattr(_np, name)
    value = getattr(function_of, name, None)
    if kind in ("function", "ufunc") and callable(value):
        return _array.forward(path, name, value)
    raise NotImplementedError(f"the stand-in has no {path}.{name}, which CuPy has")


def _namespace(path, function_of, **own):
    """A module that has CuPy's names alone: those given, and those that NumPy's `function_of` has."""
    module = _types.ModuleType(path)
    vars(module).update(own)

    def find(name):
        value = _find(path, function_of, name)
        setattr(module, name, value)
        return value

    module.__getattr__ = find
    return module


cuda = _namespace("cupy.cuda", None, **_cuda.NAMES)
cuda.runtime = _namespace("cupy.cuda.runtime", None, **_cuda.RUNTIME)
linalg = _namespace("cupy.linalg", _np.linalg, LinAlgError=_np.linalg.LinAlgError)
random = _namespace("cupy.random", None, Generator=_random.Generator, default_rng=_random.default_rng)
lib = _types.ModuleType("cupy.lib")
lib.stride_tricks = _namespace("cupy.lib.stride_tricks", _np.lib.stride_tricks)
for _module in (cuda, linalg, random, lib):  # for `import cupy.cuda`
    _sys.modules[f"{__name__}.{_module.__name__.split('.')[1]}"] = _module


def __getattr__(name):
    value = _find("cupy", _np, name)
    globals()[name] = value
    return value
