"""What the stand-in knows that CuPy does not: counts of transfers, faults to simulate, the list of CuPy's names.

    with stand_in.counting() as counts:
        train_one_step()
    assert counts.waits == 0, counts.wait_places
"""

import contextlib
import functools
import json
import os
import sys
import threading
from pathlib import Path

MANIFEST = json.loads((Path(__file__).parent / "manifest.json").read_text(encoding="utf-8"))
VERSION = MANIFEST["version"]

# no_gpu, no_driver, old_driver, no_nvrtc or no_cublas; None where all is well.
fault = os.environ.get("STAND_IN_FAULT")


class Counts:
    """What happened on all threads within a `counting` block."""

    def __init__(self):
        self.waits = 0  # times the host waited for the device: transfers to the host, float(), if, print, synchronize
        self.wait_places = []  # the line of each, file:line
        self.uploads = 0  # arrays of the host that went to the device
        self.launches = 0  # kernels and products that ran


_lock = threading.Lock()
_counting = []


@contextlib.contextmanager
def counting():
    """Count what happens within the block."""
    counts = Counts()
    with _lock:
        _counting.append(counts)
    try:
        yield counts
    finally:
        with _lock:
            _counting.remove(counts)


def count_wait():
    """The host waits for the device here."""
    if not _counting:
        return
    frame = sys._getframe(1)
    while frame.f_back and Path(frame.f_code.co_filename).parent == Path(__file__).parent:
        frame = frame.f_back
    with _lock:
        for counts in _counting:
            counts.waits += 1
            counts.wait_places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")


def count_upload():
    """An array goes from the host to the device here."""
    with _lock:
        for counts in _counting:
            counts.uploads += 1


def count_launch():
    """A kernel or a product runs here."""
    with _lock:
        for counts in _counting:
            counts.launches += 1


def require(path, name):
    """The manifest's [kind, parameters] of `path.name`; an AttributeError that says what to do where it has none."""
    names = MANIFEST.get(path, {})
    if name not in names:
        raise AttributeError(f"the stand-in does not know {path}.{name}: see whether CuPy has it. If so, where CuPy is "
                             f"installed, python tests/make_cupy_manifest.py {path}.{name} adds it to manifest.json")
    if names[name] is None:
        raise AttributeError(f"CuPy {VERSION} has no {path}.{name}")
    return names[name]


@functools.cache
def signature(path, name):
    """A function that takes what CuPy's `path.name` takes, and raises Python's own TypeError for anything else."""
    _, parameters = require(path, name)
    check = eval(f"lambda {'*args, **kwargs' if parameters is None else parameters}: None")
    check.__qualname__ = f"CuPy {VERSION}: {path}.{name}"
    return check
