"""The cores that a process may use: how many, a thread kept to each, and BLAS kept to the one of its caller."""

import contextlib
import functools
import math
import os
import threading
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

MAX_THREADS = 16  # each worker holds gradients of its own, and many would get shards too small to be worth it
KEPT = 4  # threads, at the most, that are kept to cores: as many as a batch of 32 gets
# Numbers in NumPy's buffer. Runs that are shorter it copies there, of arrays with gaps; at its usual 8,192 even runs of
# thousands, which takes longer than to compute where they are.
BUFFER = 1024

LOCK = threading.Lock()  # of what all models share here; nobody forks while it is held, or a child would wait for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


neighbours = 1  # processes that share these cores as one program, which processes.py counts


def allowed():
    """The cores of this process's CPU set."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available_cores():
    """How many cores this process may use: of its CPU set, its container's quota and OMP_NUM_THREADS the least.

    Of the first two it has a share, where it has neighbours.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(max(1, min(len(allowed()), quota()) // neighbours),
               int(asked) if asked.isdecimal() and int(asked) else MAX_THREADS, MAX_THREADS)


def quota(folder=Path("/sys/fs/cgroup")):
    """How many cores' time a container may use, rounded up: the files of version 2 of Linux's cgroups, or of 1."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
            time, period = " ".join((folder / name).read_text() for name in names).split()
            if int(time) > 0:  # version 1 says -1 where there is no quota
                return math.ceil(int(time) / int(period))
    return math.inf


@contextlib.contextmanager
def small_buffer():
    """In this block, NumPy's buffer on the calling thread is as small as that of the workers."""
    before = np.setbufsize(BUFFER)
    try:
        yield
    finally:
        np.setbufsize(before)


def core_for_each(threads):
    """A function for each of so many threads to call as it starts: it gets a core of its own, and a small buffer.

    Left to itself, a system may run two threads on one core for seconds while another core is idle, at half the speed.
    With fewer threads than cores, or more, nothing is kept anywhere, since others would keep to the same cores; nor
    with so many threads that some often have nothing to do; nor where the system has no such call (only Linux has) or
    forbids it. The first thread has the most to do: where it is kept depends on the process.
    """
    cores = sorted(allowed()) if hasattr(os, "sched_setaffinity") else []
    first = os.getpid() % max(1, len(cores))
    free = iter(cores[first:] + cores[:first] if len(cores) == threads <= KEPT else ())

    def keep():
        np.setbufsize(BUFFER)
        core = next(free, None)
        if core is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {core})  # 0 is the calling thread

    return keep


blas = functools.cache(ThreadpoolController)  # what knows the BLAS that NumPy has loaded
holders, limit = 0, None  # how many threads hold BLAS to one of its own, and what lets go of it


@contextlib.contextmanager
def one_blas_thread():
    """A context in which BLAS keeps to the thread that calls it; the last of several to leave it lets go.

    Workers need it, and so does what a training loop does between two of their steps: BLAS's own threads, once they
    have helped with anything, spin for a while on the cores that the workers need (a quarter of the speed).
    """
    global holders, limit
    with LOCK:
        if not holders:
            limit = blas().limit(limits=1, user_api="blas")
            let_others_change()
        holders += 1
    try:
        yield
    finally:
        with LOCK:
            holders -= 1
            if not holders:
                limit.restore_original_limits()
                let_others_change()


def let_others_change():
    """Newer versions of threadpoolctl let one thread alone change what BLAS does, until it says that it is done."""
    for library in blas().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread()
