"""cupy.cuda of the pretended device: one GPU, which does at once what it is told."""

import types

from . import _memory, stand_in


def is_available():
    try:
        return get_device_count() > 0
    except _memory.CUDARuntimeError:
        return False


def get_device_count():
    _memory.check_device()
    return 1


def driver_version():
    return {"no_driver": 0, "old_driver": 11040}.get(stand_in.fault, 12090)


def memory_info():
    _memory.check_device()
    limit = _memory.pool.get_limit() or _memory.TOTAL
    return limit - _memory.pool.used_bytes(), _memory.TOTAL


def synchronize():
    _memory.check_device()
    stand_in.count_wait()


class Device:
    """The only device."""

    def __init__(self, device=None):
        if device:
            raise _memory.CUDARuntimeError(101, "cudaErrorInvalidDevice: invalid device ordinal")
        self.id, self.compute_capability = 0, "90"

    mem_info = property(lambda self: memory_info())

    def synchronize(self):
        synchronize()

    def use(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass


class Stream:
    """A queue of work, of which nothing is ever left."""

    done = True

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        pass

    def synchronize(self):
        synchronize()

    def use(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass


Stream.null = Stream(null=True)

NAMES = {
    "Device": Device,
    "MemoryPool": _memory.MemoryPool,
    "Stream": Stream,
    "get_current_stream": lambda device_id=-1: Stream.null,
    "get_device_id": lambda: 0,
    "is_available": is_available,
    "memory": types.SimpleNamespace(OutOfMemoryError=_memory.OutOfMemoryError, MemoryPool=_memory.MemoryPool),
}
RUNTIME = {
    "CUDARuntimeError": _memory.CUDARuntimeError,
    "deviceSynchronize": synchronize,
    "driverGetVersion": driver_version,
    "getDevice": lambda: get_device_count() - 1,
    "getDeviceCount": get_device_count,
    "getDeviceProperties": lambda device: {"name": b"stand-in", "totalGlobalMem": _memory.TOTAL, "warpSize": 32},
    "memGetInfo": memory_info,
    "runtimeGetVersion": lambda: 12090,
}
