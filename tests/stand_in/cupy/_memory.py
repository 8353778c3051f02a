"""The memory of the pretended device: how much is taken, and an error where it does not suffice."""

import contextlib
import functools
import threading
import weakref

from . import stand_in

TOTAL = 16 << 30


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime, with its number in `status`."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class OutOfMemoryError(MemoryError):
    """The device has no more memory."""

    def __init__(self, size, total, limit=0):
        limit = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limit}).")


class MemoryPool:
    """How much of the device's memory arrays take, by the host memory that they lie in."""

    def __init__(self):
        self._limit, self._used = 0, 0
        self._owners = {}  # the owner's id: a reference to it, and its size
        self._lock = threading.RLock()  # an array may be freed by this very thread while it holds the lock

    def set_limit(self, size=None, fraction=None):
        self._limit = int(size or TOTAL * (fraction or 0))

    def get_limit(self):
        return self._limit

    def used_bytes(self):
        return self._used

    def total_bytes(self):
        return self._used

    def free_bytes(self):
        return 0

    def n_free_blocks(self):
        return 0

    def free_all_blocks(self, stream=None):
        pass

    def _charge(self, host):
        """Count the memory that an array lies in, if it does not count yet, until it is freed."""
        while getattr(host, "base", None) is not None:
            host = host.base
        with self._lock:
            if id(host) in self._owners or not hasattr(host, "nbytes"):
                return
            size = -(-host.nbytes // 512) * 512
            if self._used + size > (self._limit or TOTAL):
                raise OutOfMemoryError(size, self._used, self._limit)
            self._used += size
            self._owners[id(host)] = weakref.ref(host, functools.partial(self._release, id(host))), size

    def _release(self, key, _):
        with self._lock:
            self._used -= self._owners.pop(key)[1]


pool = MemoryPool()


@contextlib.contextmanager
def allocating():
    """Where the host's own memory does not suffice, the device's does not either."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except MemoryError:
        raise OutOfMemoryError(TOTAL, pool.used_bytes(), pool.get_limit()) from None


def check_device():
    """Raise what the CUDA runtime raises where it finds no device."""
    if stand_in.fault in ("no_driver", "old_driver"):
        raise CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime "
                                   "version")
    if stand_in.fault == "no_gpu":
        raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")


def check_kernel():
    """Raise what the first kernel raises without the library that compiles it."""
    check_device()
    if stand_in.fault == "no_nvrtc":
        raise RuntimeError(_missing("nvrtc"))


def check_product():
    """Raise what the first product of matrices raises without the library for it."""
    check_device()
    if stand_in.fault == "no_cublas":
        raise ImportError(_missing("cublasLt"))


def _missing(library):
    names = f"lib{library}.so.13 or lib{library}.so.12"
    return f'Failure finding "{names}": No such file: {names}, No such file: {names}\n'
