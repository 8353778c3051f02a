"""A batch as a sum of shards: worker threads over shared parameters.

The loss of a batch is a sum over its images, and so is the gradient: split the batch into shards, compute each shard's
part, add up. NumPy lets go of Python's global lock inside a product or a large elementwise operation, so threads really
run at the same time, each on a few images that stay in its core's cache: that is faster than one product on all cores.
BLAS is held to one thread meanwhile, since its own threads would get in the way.

A model may be asked by any number of threads at a time, and used on in a forked process, which has none of the threads
that its parent had.
"""

import functools
import itertools
import math
import operator
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from vae_np.backend import xp
from vae_np.errors import whole_number
from vae_np.fast.arrays import cut
from vae_np.fast.cores import LOCK, available_cores, core_for_each, one_blas_thread, small_buffer
from vae_np.fast.gpu import IN_USE
from vae_np.fast.signals import uninterrupted
from vae_np.layers import bind
from vae_np.vae import VAE

# Images that one worker handles at a time, at the most. A GPU wants many. On a CPU they are cut once more, into groups
# for the cache (winograd.TILES), and should be enough for transformed kernels to pay.
SHARD_SIZE = 512 if IN_USE else 64
# However few images it has, a thread makes hundreds of calls a step, and after each it waits for Python's global lock.
# Each thread more makes all of them wait longer, by about the time that so many images take one (measured on 16 cores).
THREAD_COST = 2


class Replica(VAE):
    """A VAE that shares another's parameters and has gradients and caches of its own, for a shard on another thread.

    share is that of the shard in its batch: the mean over a batch is the sum of share times the mean over each shard.
    """

    def __init__(self, model):
        super().__init__(**model.settings, dtype=model.dtype)
        self.values, self.share = model.values, 1.0
        bind(self.parameters, self.values, self.grads)
        self.sum, self.shards = xp.empty_like(self.grads), 0  # of the gradients of so many shards, where it is not one

    def backward(self, dlogits, dmu, dlog_var):
        """VAE.backward, for the part of the batch's loss that is the shard's."""
        super().backward(self.share * dlogits, self.share * dmu, self.share * dlog_var)


class Workers:
    """Threads that share a model's parameters; each has gradients and caches of its own, in its replica of the model.

    threads: how many; by default one for each available core, and always one on a GPU. A shard always goes to the same
    worker and sums are taken in a fixed order: the same number of threads gives the same bits every time.
    Raises InputError for a number below 1.
    """

    def __init__(self, model, threads=None):
        threads = available_cores() if threads is None else whole_number(threads, "threads", least=1)
        self.threads = 1 if IN_USE else threads
        self.replicas = [Replica(model) for _ in range(self.threads)]
        # Pools of one thread each: what a replica is to do, it does in turn, whoever asks.
        keep = core_for_each(self.threads)
        self.pools = [ThreadPoolExecutor(1, initializer=keep) for _ in self.replicas]
        self.last, self.turns = {}, itertools.count()  # what each was asked to do last; whose turn it is
        self.process = os.getpid()

    def shard_size(self, count):
        """Images in a shard of a batch of `count`: few enough for a core's cache, and about as many for each worker.

        Of many workers, some get none: with k of them a step takes as long as count / k + THREAD_COST k images, which
        is least for k = sqrt(count / THREAD_COST). A free-threaded Python has no lock to wait for.
        """
        threads = self.threads
        if getattr(sys, "_is_gil_enabled", lambda: True)():  # Python 3.13 and newer know
            threads = max(1, min(threads, math.ceil(math.sqrt(count / THREAD_COST))))
        rounds = math.ceil(count / (threads * SHARD_SIZE))
        return max(1, math.ceil(count / (threads * max(1, rounds))))

    def busy(self, count):
        """How many of the threads get a shard of a batch of `count`."""
        return min(self.threads, math.ceil(count / self.shard_size(count)))

    def map(self, function, count, size=None, whole=False):
        """Split range(count) into shards and return [function(replica, shard), ...], a result for each shard, in order.

        A replica is used by one call at a time, and a shard is a slice of at most `size`. An exception in a worker, or
        Ctrl-C, is raised here once no worker is at work any more; after Ctrl-C no shard is begun, unless `whole`.
        """
        shards = cut(count, size or self.shard_size(count))
        results = [None] * len(shards)

        def work(worker, first):
            for i in range(first, len(shards), self.threads):
                if whole or not stopped:
                    results[i] = function(self.replicas[worker], shards[i])

        with uninterrupted() as stopped, one_blas_thread():
            with LOCK:
                workers = range(min(self.threads, len(shards)))
                if len(shards) == 1:  # a small request, as a service has many: who is idle, or else each in turn
                    everyone = range(self.threads)
                    idle = (worker for worker in everyone if worker not in self.last or self.last[worker].done())
                    workers = [next(idle, next(self.turns) % self.threads)]
                futures = [self.pools[worker].submit(work, worker, first) for first, worker in enumerate(workers)]
                self.last.update(zip(workers, futures, strict=True))
            try:
                wait(futures)
            except KeyboardInterrupt as second:
                stopped.append(second)
                wait(futures)  # or the next call would share replicas with this one
                raise
        for future in futures:
            future.result()  # raises what the worker raised
        return results

    def divide(self, function, size):
        """Call function(part) on all threads, with a slice of range(size) each: elementwise work on flat arrays."""
        self.map(lambda replica, part: function(part), size, math.ceil(size / self.threads), whole=True)

    def sum(self, function, count):
        """The sum of what `map` returns, for each of a tuple."""
        return [functools.reduce(operator.add, column) for column in zip(*self.map(function, count), strict=True)]


class ParallelVAE(VAE):
    """A VAE that has its work done in shards, on the threads of `workers`; a batch of one shard it does itself."""

    _workers = None

    @property
    def workers(self):
        """One thread for each core, once they are needed; assign Workers(model, threads) for others."""
        with LOCK:
            if self._workers is None:
                self._workers = Workers(self)
            elif self._workers.process != os.getpid():  # a fork
                self._workers = Workers(self, self._workers.threads)
            return self._workers

    @workers.setter
    def workers(self, workers):
        self._workers = workers

    def loss_and_gradient(self, x, eps, likelihood, beta=1.0):
        """VAE.loss_and_gradient as a sum over shards: gradients of shards add up, and so do their terms."""
        count, workers = len(x), self.workers
        if workers.shard_size(count) >= count:
            with one_blas_thread(), small_buffer():
                return super().loss_and_gradient(x, eps, likelihood, beta)
        self._check_images(x, values=False)  # which each shard looks at for itself, and all at a time
        self._check_codes(eps, "noise", rows=count)

        def add(replica, shard):
            if replica.shards == 1:
                replica.sum[...] = replica.grads  # which backward is about to overwrite
            replica.share, replica.shards = len(x[shard]) / count, replica.shards + 1
            recon, kl = replica.loss_and_gradient(x[shard], eps[shard], likelihood, beta)
            if replica.shards > 1:
                replica.sum += replica.grads
            return replica.share * recon, replica.share * kl

        for replica in workers.replicas:
            replica.shards = 0
        recon, kl = workers.sum(add, count)
        busy = [replica for replica in workers.replicas if replica.shards]  # few shards leave some without one
        totals = [replica.sum if replica.shards > 1 else replica.grads for replica in busy]

        def add_up(part):
            total, *others = [each[part] for each in totals]
            if not others:
                self.grads[part] = total
            for other in others:
                total = xp.add(total, other, out=self.grads[part])

        workers.divide(add_up, self.grads.size)
        return recon, kl

    def latent_kl(self, x):
        """VAE.latent_kl as a sum over shards."""
        def part(replica, shard):
            kl, share = replica.latent_kl(x[shard]), len(x[shard]) / len(x)
            return [kl if share == 1 else kl * share]

        return self.workers.sum(part, len(x))[0]

    def in_parts(self, function, *arrays):
        """VAE.in_parts, a shard at a time, of one size for any number of threads: the same codes, the same faces."""
        count, whole = len(arrays[0]), {}

        def part(replica, shard):
            for number, piece in enumerate(function(replica, *(array[shard] for array in arrays))):
                whole.setdefault(number, np.empty((count, *piece.shape[1:]), piece.dtype))[shard] = piece

        self.workers.map(part, count, SHARD_SIZE)
        return [whole[number] for number in sorted(whole)]
