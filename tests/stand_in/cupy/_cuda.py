"""cupy.cuda of the pretended device: one GPU, which does at once what it is told."""

from . import _memory, stand_in


def get_device_count():
    _memory.check_device()
    return 1


def driver_version():
    return {"no_driver": 0, "old_driver": 11040}.get(stand_in.fault, 12090)


def memory_info():
    _memory.check_device()
    return _memory.pool._limit - _memory.pool.used_bytes(), _memory.TOTAL


class Device:
    """The only device."""

    def synchronize(self):
        _memory.check_device()
        stand_in.count_wait()


RUNTIME = {
    "CUDARuntimeError": _memory.CUDARuntimeError,
    "driverGetVersion": driver_version,
    "getDeviceCount": get_device_count,
    "memGetInfo": memory_info,
    "runtimeGetVersion": lambda: 12090,
}
