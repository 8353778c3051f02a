"""A batch as a sum of shards: worker threads over shared parameters.

The loss of a batch is a sum over its images, and so is the gradient: split the batch into shards, compute each shard's
part, add up. NumPy lets go of Python's global lock inside a product or a large elementwise operation, so threads really
run at the same time. A shard's arrays are small enough to stay in a core's cache, which is what makes this faster than
one product on all cores; BLAS is held to one thread meanwhile, since its own threads would get in the way.
"""

import contextlib
import functools
import math
import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from threadpoolctl import ThreadpoolController

from vae_np.backend import xp
from vae_np.losses import CalibratedGaussian, kl_per_dimension, squared_error

# Images that one worker handles at a time, at the most. A GPU wants large batches, a core's cache small ones.
SHARD_SIZE = 32 if xp is np else 512
# Each worker holds gradients of its own, and many of them would get shards too small to be worth it.
MAX_THREADS = 16


def available_cores():
    """How many cores this process may use, at most MAX_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def core_for_each(threads):
    """A function for each of so many threads to call as it starts: it keeps the thread to a core of its own.

    Left to itself, a system may run two threads on one core for seconds while another core is idle, at half the speed.
    With fewer threads than cores, or more, nothing is kept anywhere, since others would keep to the same cores; nor
    where the system has no such call (only Linux has) or forbids it.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    free = iter(cores if len(cores) == threads else ())

    def keep():
        core = next(free, None)
        if core is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {core})  # 0 is the calling thread

    return keep


class Workers:
    """Threads that share a model's parameters; each has gradients and caches of its own, in its replica of the model.

    threads: how many; by default one for each available core, and always one on a GPU. A shard always goes to the same
    worker and sums are taken in a fixed order: the same number of threads gives the same bits every time.
    """

    def __init__(self, model, threads=None):
        self.grads = model.grads  # not the model: each would keep the other, and the threads, alive
        self.threads = 1 if xp is not np else threads or available_cores()
        self.replicas = [model.replica() for _ in range(self.threads)]
        self.sums = [xp.empty_like(model.grads) for _ in range(self.threads)]
        self.pool = ThreadPoolExecutor(self.threads, initializer=core_for_each(self.threads))
        self.blas = ThreadpoolController()

    def one_blas_thread(self):
        """A context in which BLAS keeps to the thread that calls it.

        `map` needs it, and so does what a training loop does between two calls of `map`: BLAS's own threads, once they
        have helped with anything, spin for a while on the cores that the workers need (a quarter of the speed).
        """
        return self.blas.limit(limits=1, user_api="blas")

    def shard_size(self, count):
        """Images in a shard of a batch of `count`: few enough for a core's cache, and about as many for each worker."""
        rounds = math.ceil(count / (self.threads * SHARD_SIZE))
        return max(1, math.ceil(count / (self.threads * max(1, rounds))))

    def map(self, function, count, size=None):
        """Split range(count) into shards and return [function(worker, shard), ...], a result for each shard, in order.

        worker is the number of the replica to use, which no other call uses meanwhile, and shard a slice of at most
        `size`. function may call a replica's forward and backward, not its encode or decode, which want workers of
        their own. An exception in a worker, or Ctrl-C, is raised here once no worker is at work any more.
        """
        size = size or self.shard_size(count)
        shards = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        results = [None] * len(shards)
        stop = threading.Event()

        def work(worker):
            for i in range(worker, len(shards), self.threads):
                if not stop.is_set():
                    results[i] = function(worker, shards[i])

        with self.one_blas_thread():
            futures = [self.pool.submit(work, worker) for worker in range(self.threads)]
            try:
                wait(futures)
            except KeyboardInterrupt:
                stop.set()
                wait(futures)  # or the next call would share replicas with this one
                raise
        for future in futures:
            future.result()  # raises what the worker raised
        return results

    def kl_per_dimension(self, x):
        """KL divergence of each latent, averaged over images x (N, H, W, 3) on the device: (Z,), there, too."""
        def work(worker, shard):
            replica = self.replicas[worker]
            h = replica.encoder.forward(x[shard])
            return kl_per_dimension(h[:, : replica.latent_dim], h[:, replica.latent_dim :]) * (len(h) / len(x))

        return functools.reduce(operator.add, self.map(work, len(x)))

    def loss_and_gradient(self, x, eps, likelihood, beta=1.0):
        """VAE.loss_and_gradient of the whole batch: returns (recon, kl), and the gradient is in the model's grads."""
        if isinstance(likelihood, CalibratedGaussian):
            self._calibrate(likelihood, x, eps)

        # A replica's backward overwrites its gradients: the sum over several shards needs a place of its own.
        one_each = len(x) <= self.threads * self.shard_size(len(x))
        sums = [replica.grads for replica in self.replicas] if one_each else self.sums

        def work(worker, shard):
            replica, total = self.replicas[worker], sums[worker]
            terms = replica.loss_and_gradient(x[shard], eps[shard], likelihood, beta, batch_size=len(x))
            if shard.start > worker * self.shard_size(len(x)):
                total += replica.grads
            elif total is not replica.grads:
                total[...] = replica.grads  # a worker's first shard starts anew
            return terms

        terms = self.map(work, len(x))
        busy = sums[: len(terms)]  # a batch of few shards leaves some workers without one
        self.grads[...] = busy[0]
        for total in busy[1:]:
            self.grads += total
        return tuple(functools.reduce(operator.add, term) for term in zip(*terms, strict=True))

    def _calibrate(self, likelihood, x, eps):
        # Sigma depends on the whole batch and the gradient on sigma, so this costs a forward pass of its own.
        def work(worker, shard):
            logits, _, _ = self.replicas[worker].forward(x[shard], eps[shard])
            return squared_error(logits, x[shard])

        likelihood.calibrate(functools.reduce(operator.add, self.map(work, len(x))), x.size)
