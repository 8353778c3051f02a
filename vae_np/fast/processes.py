"""A batch as a sum of shards that live in several processes, of one machine or of many, which mpiexec has started.

    mpiexec -n 4 python lessons/03_train.py

Each has the whole model, draws the same order and the same noise, computes its part of each batch, and one Allreduce
adds up the gradients: N processes compute the curve of one, up to the rounding of sums. For one that fails the others
would wait for ever: so it ends without MPI_Finalize, upon which mpiexec ends all. Only this file imports mpi4py.
"""

import ctypes
import hashlib
import math
import signal
import sys
from pathlib import Path

import numpy as np

from vae_np.backend import NAME, to_cpu, to_device
from vae_np.errors import InputError, TrainingError
from vae_np.fast import cores, signals, voices
from vae_np.fast.gpu import IN_USE, synchronize
from vae_np.fast.workers import SHARD_SIZE, ParallelVAE, Workers

INSTALL = 'install an MPI and mpi4py: pip install -e ".[mpi]"'
ROUND = 16 * SHARD_SIZE  # images that a process looks at, at the most, before it asks whether another was told to stop
comm = MPI = None  # COMM_WORLD, until `leave`, and its module, once `world` was called under mpiexec
direct = False  # whether MPI adds up what is in GPUs' memory, without the host
noted = [0]  # and the number of a signal, once one has come


def world():
    """mpi4py's COMM_WORLD under mpiexec, else None; `leave` is its end. Raises InputError where it cannot be had."""
    global comm, MPI, direct
    if MPI is not None or not (count := voices.started()):
        return comm
    if NAME == "plain":
        raise InputError("VAE_BACKEND=plain computes in one process; unset it, or leave mpiexec out")
    try:
        import mpi4py
        mpi4py.rc.finalize = False  # at exit, one that fails would wait for the others, and they for it
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(f"under mpiexec, but without MPI ({' '.join(str(error).split())}); {INSTALL}") from None
    if MPI.COMM_WORLD.size != count:
        raise InputError(f"mpiexec has started {count} processes, and mpi4py finds {MPI.COMM_WORLD.size}; take the "
                         f"mpiexec of its own MPI, {MPI.Get_library_version().splitlines()[0].strip()}")
    comm, mine = MPI.COMM_WORLD, cores.allowed()
    cores.neighbours = sum(not mine.isdisjoint(its) for its in comm.Split_type(MPI.COMM_TYPE_SHARED).allgather(mine))
    # MPI itself has no such question; Open MPI and MPICH have this one, and of others the answer is taken to be no.
    direct = IN_USE and bool(getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", int)())
    voices.call_witness(comm)
    if IN_USE:
        print("gradients are added up in", "the memory of the GPUs" if direct else "host memory, as MPI knows no CUDA")
    return comm


def leave(model, threads=None):
    """What takes several processes is done: the others end here, the first goes on alone, on all cores if not told."""
    global comm
    if comm is not None:
        comm.Barrier()
        voices.tell(voices.SILENCE)
        MPI.Finalize()
        comm, cores.neighbours = None, 1
        if voices.rank():
            sys.exit()
        model.workers = Workers(model, threads)


def compare(**parts):
    """Raise InputError unless all processes have the same of each part, such as seed=...; and the same program."""
    if comm is not None:
        parts["program"] = [path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
        digests = [hashlib.sha256(repr(part).encode()).digest() for part in parts.values()]
        for number, theirs in enumerate(everyone := comm.allgather(digests)):
            for name, digest, expected in zip(parts, theirs, everyone[0], strict=True):
                if digest != expected:
                    raise InputError(f"rank {number} has another {name} than rank 0; start all with the same")


def interruptible():
    """signals.interruptible; but of several processes none stops alone: a signal waits for `check`."""
    def note(number, frame):
        signals.let_go()
        noted.append(number)

    return signals.interruptible() if comm is None else signals.handled_by(note)


def check():
    """Meet the other processes; if a signal has come to one, raise Interrupted in all."""
    if comm is not None:
        numbers = comm.allgather(noted[-1])
        if number := max(numbers):
            raise signals.Interrupted(number, f" by {signal.Signals(number).name} to rank {numbers.index(number)}")


class SpreadVAE(ParallelVAE):
    """A ParallelVAE that does its part of what all processes ask for; the same number gives the same bits."""

    def _mine(self, count):
        """The part of a batch of `count` that is this process's, and its share: 0 where there are too few for all."""
        part = slice(comm.rank * count // comm.size, (comm.rank + 1) * count // comm.size)
        return part, (part.stop - part.start) / max(1, count)

    def loss_and_gradient(self, x, eps, likelihood, beta=1.0):
        """VAE.loss_and_gradient: the mean over a batch is the sum of share times the mean over each part."""
        if comm is None:
            return super().loss_and_gradient(x, eps, likelihood, beta)
        self._check_codes(eps, "noise", rows=len(x))
        (part, share), terms = self._mine(len(x)), np.zeros(2)
        if not share:
            self.grads[...] = 0
        else:
            terms[:] = [share * float(term) for term in super().loss_and_gradient(x[part], eps[part], likelihood, beta)]
            self.grads *= share
        gradient, each = self.grads if direct else to_cpu(self.grads), np.empty((comm.size, 2))
        if direct:
            synchronize()  # MPI does not wait for what a GPU has still to do
        comm.Allreduce(MPI.IN_PLACE, gradient)
        comm.Allgather(terms, each)
        if gradient is not self.grads:
            self.grads[...] = to_device(gradient)
        if 0 < (finite := np.isfinite(each).all(axis=1)).sum() < comm.size:
            raise TrainingError(f"rank {finite.argmin()} alone has a loss that is not finite; is its machine in order?")
        return to_device(each.sum(axis=0))

    def latent_kl(self, x):
        """VAE.latent_kl."""
        if comm is None:
            return super().latent_kl(x)
        part, share = self._mine(len(x))
        kl = share * to_cpu(super().latent_kl(x[part])) if share else np.zeros(self.latent_dim, self.dtype)
        comm.Allreduce(MPI.IN_PLACE, kl)
        return to_device(kl)

    def in_parts(self, function, *arrays):
        """VAE.in_parts, in shards as those of one process: the same bits, whatever the number."""
        count = len(arrays[0])
        if comm is None or count <= SHARD_SIZE:  # so few each does for itself
            return super().in_parts(function, *arrays)
        size, results = min(ROUND, SHARD_SIZE * math.ceil(count / SHARD_SIZE / comm.size)), []
        for start in range(comm.rank * size, comm.rank * size + count, comm.size * size):
            own = [array[start : start + size] for array in arrays]
            results += comm.allgather(super().in_parts(function, *own) if len(own[0]) else None)
            check()
        return [np.concatenate(column) for column in zip(*filter(None, results), strict=True)]
