"""The one switch: xp is NumPy or CuPy, chosen by the environment variable VAE_BACKEND ("numpy" or "cupy").

Layers, losses and the optimizer compute with xp alone, so that one body of code serves both. Random numbers are always
drawn by NumPy on the host: the same seed then gives the same weights and the same noise on either backend.
"""

import functools
import os

import numpy as np


class BackendError(SystemExit):
    """The chosen backend cannot be used. As a SystemExit, it ends a program with its one line and status 1."""

    def __init__(self, problem, remedy):
        super().__init__(f"error: VAE_BACKEND={NAME}, but {problem}; {remedy}, or unset VAE_BACKEND")


def _load_cupy():
    if os.environ.get("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM") == "1":
        # The threads of parallel.Workers and the main one rely on each other's work being done in order.
        raise BackendError("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1 lets threads overtake each other", "unset it")
    install = ('see which CUDA version nvidia-smi shows, 12 or 13, and pip install "cupy-cuda12x[ctk]" or '
               '"cupy-cuda13x[ctk]"')
    try:
        import cupy
    except ModuleNotFoundError:
        raise BackendError("CuPy is not installed", install) from None
    except ImportError as error:
        raise BackendError(f"CuPy is installed and fails to start ({first_line(error)})", install) from None
    _find_gpu(cupy.cuda.runtime)
    # Without a library of the toolkit all goes well up to the first kernel, or the first product.
    for what, library, attempt in (
        ("compile a kernel", "NVRTC", lambda: cupy.arange(2) + 1),
        ("multiply matrices", "cuBLAS", lambda: cupy.ones((2, 2), "float32") @ cupy.ones((2, 2), "float32")),
    ):
        try:
            attempt()
        except (MemoryError, cupy.cuda.runtime.CUDARuntimeError) as error:
            raise BackendError(f"the GPU cannot {what} ({first_line(error)})", "see with nvidia-smi whether another "
                               "program fills it") from None
        except Exception as error:  # CuPy has many of its own, and loaders of libraries have others
            raise BackendError(f"CuPy cannot {what} ({first_line(error)})", f"the toolkit's {library} seems to be "
                               'missing: pip install "cupy-cuda12x[ctk]", or 13 for 12') from None
    return cupy


def first_line(error):
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find_gpu(runtime):
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        count = 0
    # CUDA calls a driver that is missing and one that is too old by the same name.
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not driver:
        raise BackendError("there is no NVIDIA driver", "install one, until nvidia-smi shows your GPU")
    if not count and driver // 1000 < needed // 1000:
        raise BackendError(f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10} and CuPy for CUDA "
                           f"{needed // 1000}", "update the driver, or install the CuPy of its version, if that is 12 "
                           "or newer")
    if not count:
        raise BackendError("CUDA finds no GPU", "see that nvidia-smi shows one and CUDA_VISIBLE_DEVICES names it")


NAME = os.environ.get("VAE_BACKEND") or "numpy"
if NAME not in ("numpy", "cupy"):
    raise BackendError("there is no such backend", "set it to numpy or cupy")
xp = np if NAME == "numpy" else _load_cupy()


def on_gpu(kernel):
    """Decorate array code that on a GPU gives way to `kernel`, of the same arguments and results.

    The array code says what is computed, and is what runs on a CPU. On a GPU it can be had as __wrapped__.
    """

    def exchange(function):
        if xp is np:
            return function

        @functools.wraps(function)
        def launch(*args, **kwargs):
            return kernel(*args, **kwargs)

        return launch

    return exchange


def to_cpu(array):
    """The same array as a NumPy array, whichever backend made it. On a GPU the host waits for it."""
    return array if xp is np else xp.asnumpy(array)


def to_device(array):
    """A NumPy array as an array of the backend; no copy where the backend is NumPy."""
    return array if xp is np else xp.asarray(array)


def synchronize():
    """Wait until a GPU has done all that it was told; a CPU has."""
    if xp is not np:
        xp.cuda.Device().synchronize()


def free_memory():
    """Bytes that arrays of the backend may still take, on a GPU; on a CPU 0, since no array has to be moved there."""
    return 0 if xp is np else xp.cuda.runtime.memGetInfo()[0]
