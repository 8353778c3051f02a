"""What lesson 11 needs beside its subject: what processes measure together, how they are started, a chart of curves."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vae_np.backend import NAME, xp
from vae_np.disk.files import replacing
from vae_np.errors import InputError
from vae_np.fast.processes import INSTALL
from vae_np.study import pictures

SIZES = 4 ** np.arange(5, 12)  # bytes


def fastest(seconds, function, *arguments, world=None):
    """The least of several times of a call, as many as fit into so many seconds.

    All processes of a world call at the same time, and the time of the slowest counts.
    """
    times = []
    while sum(times) < seconds:
        if world is not None:
            world.Barrier()
        start = time.perf_counter()
        function(*arguments)
        took = time.perf_counter() - start
        times.append(took if world is None else world.allreduce(took, max))
    return min(times)


def sum_seconds(n, size, latency, bandwidth):
    """The model of a sum over n processes: 2 (n - 1) messages, each an n-th of the buffer's size."""
    return 2 * (n - 1) * (latency + size / n / bandwidth)


def fit(n, sizes, seconds):
    """The latency and the bandwidth of sum_seconds: the first size, the smallest, is all messages, the last all bytes.

    What lies between them then says whether the model is any good.
    """
    return seconds[0] / (2 * (n - 1)), 2 * (n - 1) / n * sizes[-1] / seconds[-1]


def measure(world, ring, gradient, batch, out, seconds):
    """What all processes of a world do together: they try the ring, time sums, fit the model, and time a gradient.

    gradient(first, end, dtype) is that of the mean over these of a batch of images. The ring is tried in float64, and
    times are those of float32. Process 0 prints what they find, and writes the times of sums to allreduce.json.
    """
    n, rank = world.size, world.rank
    if n == 1:
        raise InputError("a sum takes two processes or more, such as mpiexec -n 2")
    first, end = batch * rank // n, batch * (rank + 1) // n
    say = print if rank == 0 else lambda line: None

    def part(dtype):
        return (end - first) / batch * gradient(first, end, dtype)

    whole = gradient(0, batch, "float64")
    try_ring(world, ring, part("float64"), whole, say)
    total = np.empty(whole.shape, np.float32)
    sums = time_sums(world, ring, [*SIZES, total.nbytes], seconds)
    costs = fit(n, sums["sizes"], sums["mpi"])
    say("".join(f"{name:>12s}" for name in ("bytes", "ring, us", "MPI, us", "model, us")))
    for size, *times in zip(*sums.values(), strict=True):
        say(f"{size:12,d}" + "".join(f"{1e6 * took:12.1f}" for took in (*times, sum_seconds(n, size, *costs))))
    alone = fastest(seconds, lambda: rank or gradient(0, batch, "float32"), world=world)
    together = fastest(seconds, lambda: world.Allreduce(part("float32"), total), world=world)
    model = alone / n + sum_seconds(n, total.nbytes, *costs)
    say(f"The model: {1e6 * costs[0]:.1f} us a message, {costs[1] / 1e9:.2f} GB/s. The gradient of {batch} images: "
        f"{1e3 * alone:.0f} ms in one process;\n{1e3 * together:.0f} ms in {n}, with the sum, which takes "
        f"{sums['mpi'][-1] / together:.1%} of them; the model says {1e3 * model:.0f} ms")
    if rank == 0:
        with replacing(out / "allreduce.json") as partial:
            partial.write_text(json.dumps({"model": costs, **sums}, default=int), encoding="utf-8")


def try_ring(world, ring, part, whole, say):
    """Say how far the ring's sum of all parts is from MPI's, and MPI's from the gradient of the whole batch."""
    total = np.empty_like(part)
    world.Allreduce(part, total)
    sent = ring(world, part)
    say(f"\n{world.size} processes sum up the gradients of their parts; in the ring each sends "
        f"{sent / part.nbytes:.3f} of its buffer.\nIts sum differs from MPI's by {difference(part, total):.0e}, and "
        f"MPI's from the gradient of the whole batch by {difference(total, whole):.0e}.\n")


def time_sums(world, ring, sizes, seconds):
    """How long the ring and MPI take to sum up buffers of so many bytes: {"sizes": ..., "ring": ..., "mpi": ...}."""
    buffers = [np.zeros((2, size // 4), np.float32) for size in sizes]
    return {"sizes": sizes, "ring": [fastest(seconds, ring, world, a, world=world) for a, _ in buffers],
            "mpi": [fastest(seconds, world.Allreduce, a, b, world=world) for a, b in buffers]}


def difference(a, b):
    """The largest difference of two arrays, relative to the largest number of the second."""
    return np.abs(a - b).max() / np.abs(b).max()


def launcher(count):
    """The command that starts so many processes of a program, a list. Raises InputError where none can be started."""
    if NAME == "plain":
        raise InputError("VAE_BACKEND=plain computes in one process; unset it for this lesson")
    mpiexec = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
    if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
        raise InputError(f"several processes take what is not installed here; {INSTALL}")
    return [mpiexec, "-n", str(count)]


def start(command):
    """Run a command that starts processes, each of one thread, and print what they print, in notebooks, too."""
    # Not the variable as it is: in a notebook that has shown lesson 2 it says "plain", which is of one process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VAE_BACKEND": xp.__name__}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          text=True) as started:
        for line in started.stdout:
            print(line, end="", flush=True)
    if started.returncode:
        raise InputError(f"the processes ended with status {started.returncode}; what they said is above, and the "
                         f"command was: {' '.join(map(str, command))}")


def draw(path, *panels):
    """Panels side by side, each a pair: its curves {label: (x, y, style)}, and what Axes.set takes, a dictionary."""
    chart, axes = pictures.figure(columns=len(panels), width=5.5, height=4.0)
    for ax, (curves, settings) in zip(axes[0], panels, strict=True):
        for label, (x, y, style) in curves.items():
            ax.plot(x, y, style, label=label)
        ax.set(**settings)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    pictures.save_figure(path, chart)
