"""The memory of the pretended device: how much is taken, and an error where it does not suffice."""

import functools
import threading
import weakref

from . import stand_in

TOTAL = 16 << 30


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime."""


class OutOfMemoryError(MemoryError):
    """The device has no more memory."""


class MemoryPool:
    """How much of the device's memory arrays take, by the host memory that they lie in."""

    def __init__(self):
        self._limit, self._used = TOTAL, 0
        self._owners = {}  # the owner's id: a reference to it, and its size
        self._lock = threading.RLock()  # an array may be freed by this very thread while it holds the lock

    def set_limit(self, size):
        self._limit = size or TOTAL

    def used_bytes(self):
        return self._used

    def free_all_blocks(self):
        pass

    def _charge(self, host):
        """Count the memory that an array lies in, if it does not count yet, until it is freed."""
        while host.base is not None:
            host = host.base
        with self._lock:
            if id(host) in self._owners:
                return
            size = -(-host.nbytes // 512) * 512
            if self._used + size > self._limit:
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: {self._used:,} "
                                       f"bytes, limit set to: {self._limit:,} bytes).")
            self._used += size
            self._owners[id(host)] = weakref.ref(host, functools.partial(self._release, id(host))), size

    def _release(self, key, _):
        with self._lock:
            self._used -= self._owners.pop(key)[1]


pool = MemoryPool()


def check_device():
    """Raise what the CUDA runtime raises where it finds no device."""
    if stand_in.fault in ("no_driver", "old_driver"):
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime "
                               "version")
    if stand_in.fault == "no_gpu":
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


def check_kernel():
    """A kernel is launched. Raise what the first one raises without the library that compiles it."""
    check_device()
    stand_in.count_launch()
    if stand_in.fault == "no_nvrtc":
        raise RuntimeError(_missing("nvrtc"))


def check_product():
    """A product of matrices is launched. Raise what the first one raises without the library for it."""
    check_device()
    stand_in.count_launch()
    if stand_in.fault == "no_cublas":
        raise ImportError(_missing("cublasLt"))


def _missing(library):
    names = f"lib{library}.so.13 or lib{library}.so.12"
    return f'Failure finding "{names}": No such file: {names}, No such file: {names}\n'
