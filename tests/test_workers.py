"""A batch split over threads must give what the whole batch gives."""

import gc
import multiprocessing
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device
from vae_np.errors import InputError
from vae_np.fast import workers
from vae_np.fast.workers import ParallelVAE, Workers
from vae_np.losses import LIKELIHOODS

COUNT, SMALL = 13, {"image_size": 16, "channels": (4, 6), "latent_dim": 5}
several_workers = pytest.mark.skipif(backend.NAME != "numpy", reason="a GPU has one worker")


@pytest.fixture
def task(rng):
    model = ParallelVAE(**SMALL, seed=3, dtype="float64")  # other weights than a replica is made with
    return model, to_device(rng.random((COUNT, 16, 16, 3))), to_device(rng.standard_normal((COUNT, 5)))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize(("threads", "shard"), [(1, 4), (2, 3), (3, 5), (2, 100), (1, 100), (4, 5)])
def test_equals_the_whole_batch(task, threads, shard, name, monkeypatch):
    monkeypatch.setattr(workers, "SHARD_SIZE", shard)
    model, x, eps = task
    model.workers = Workers(model, threads)
    whole, split = LIKELIHOODS[name](), LIKELIHOODS[name]()
    # Sums of an earlier batch must not leak into the next. A batch of three leaves some workers without a shard.
    for count in (COUNT, COUNT, 3):
        found = []
        for function, likelihood in ((VAE.loss_and_gradient, whole), (ParallelVAE.loss_and_gradient, split)):
            model.grads[...] = 99
            terms = function(model, x[:count], eps[:count], likelihood, beta=0.7)
            found.append([*map(float, terms), *to_cpu(model.grads).tolist()])
        np.testing.assert_allclose(*found, rtol=1e-8, atol=1e-10)
    assert repr(split) == repr(whole) == repr(LIKELIHOODS[name]()), "no shard may calibrate for the others"
    np.testing.assert_allclose(to_cpu(model.latent_kl(x)), to_cpu(VAE.latent_kl(model, x)), rtol=1e-10)


@pytest.mark.parametrize("name", ["bernoulli", "calibrated"])
@pytest.mark.parametrize("threads", [1, *(pytest.param(threads, marks=several_workers) for threads in (2, 3))])
def test_the_bits_are_the_same_however_long_each_shard_takes(task, threads, name, monkeypatch):
    monkeypatch.setattr(workers, "SHARD_SIZE", 2)  # seven shards: more than one for each worker
    model, x, eps = task
    model.workers = Workers(model, threads)
    durations, bits = [], set()
    for replica in model.workers.replicas:
        def held_up(*arguments, original=replica.forward):
            time.sleep(durations.pop())
            return original(*arguments)

        replica.forward = held_up
    for seed in range(4):
        durations[:] = np.random.default_rng(seed).choice([0, 0.01], 7)
        terms = model.loss_and_gradient(x, eps, LIKELIHOODS[name]())
        bits.add((*map(float, terms), to_cpu(model.grads).tobytes()))
        assert not durations
    assert len(bits) == 1


@pytest.mark.parametrize(("threads", "count", "size", "expected"), [
    (2, 11, 3, [3, 3, 3, 2]), (2, 0, 3, [0]), (1, 2, 5, [2]),
    pytest.param(2, 8, None, [4, 4], marks=several_workers),  # a share of a small batch for both
    pytest.param(2, 200, None, [50] * 4, marks=several_workers),
    # Of many, some get none, so that the others' shards are worth their calls.
    pytest.param(16, 8, None, [4, 4], marks=several_workers),
    pytest.param(16, 128, None, [16] * 8, marks=several_workers),
    pytest.param(3, 32, None, [11, 11, 10], marks=several_workers)])
def test_map_covers_every_index_once_and_in_order(task, threads, count, size, expected, monkeypatch):
    monkeypatch.setattr("sys._is_gil_enabled", lambda: True, raising=False)
    shards = Workers(task[0], threads).map(lambda replica, shard: list(range(shard.start, shard.stop)), count, size)
    assert [i for shard in shards for i in shard] == list(range(count))
    assert [len(shard) for shard in shards] == expected


@several_workers
def test_without_a_lock_no_thread_is_too_many(task, monkeypatch):
    monkeypatch.setattr("sys._is_gil_enabled", lambda: False, raising=False)
    assert [Workers(task[0], 16).shard_size(count) for count in (0, 8, 32, 2048)] == [1, 1, 2, 64]


@several_workers
def test_an_error_in_a_worker_is_raised_once_all_are_at_rest(task):
    at_rest, pair = [], Workers(task[0], 2)

    def fail(replica, shard):
        if replica is pair.replicas[0]:
            raise RuntimeError(f"shard {shard.start}")
        time.sleep(0.2)
        at_rest.append(shard.start)

    with pytest.raises(RuntimeError, match="shard 0"):
        pair.map(fail, 2, 1)
    assert at_rest == [1]


@pytest.mark.skipif(not threadpool_info(), reason="threadpoolctl knows no way to limit this BLAS")
def test_blas_is_held_to_one_thread_while_workers_run(task):
    def threads(*_):
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = threads()
    assert Workers(task[0], 2).map(threads, 2, 1) == [[1] * len(before)] * 2
    assert threads() == before


def test_the_workers_are_made_once_whoever_asks_first(monkeypatch):
    made, model = [], ParallelVAE(**SMALL)
    monkeypatch.setattr(workers, "Workers", lambda *args: time.sleep(0.05) or made.append(args) or Workers(*args))
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: model.workers, range(4)))) == len(made) == 1


@several_workers
def test_small_calls_go_side_by_side(task):
    pair, both = Workers(task[0], 2), threading.Barrier(2, timeout=20)

    def meet(replica, shard):
        both.wait()
        return replica

    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(lambda _: pair.map(meet, 1)[0], range(2))) == set(pair.replicas)


def test_no_replica_is_ever_used_by_two_calls(task):
    pair, in_use = Workers(task[0], 2), []

    def use(replica, shard):
        assert replica not in in_use
        in_use.append(replica)
        time.sleep(0.005)
        in_use.remove(replica)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda count: pair.map(use, count, 1), [1, 4, 1, 2] * 5))  # raises what `use` does


@pytest.mark.skipif(backend.NAME != "numpy" or not hasattr(os, "fork"), reason="not all systems fork, and no GPU")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("count", [2, 70])
def test_a_forked_child_goes_on_with_the_model(rng, count):
    model, x = ParallelVAE(**SMALL), rng.random((count, 16, 16, 3), dtype=np.float32)
    model.workers = Workers(model, 3)
    expected = model.encode(x)[0]

    def go_on():
        os._exit(9 if model.workers.threads == 3 and (model.encode(x)[0] == expected).all() else 1)

    child = multiprocessing.get_context("fork").Process(target=go_on)
    child.start()
    child.join(30)
    child.kill()
    assert child.exitcode == 9


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_another_number_of_threads_is_refused(task, threads):
    with pytest.raises(InputError, match=f"threads must be a whole number, 1 or more, not {threads!r}"):
        Workers(task[0], threads)


def test_after_ctrl_c_no_worker_goes_on(task, monkeypatch):
    # A notebook's reader interrupts a cell and runs the next one: it must not meet the workers of the first.
    pair, begun = Workers(task[0], 2), []

    def interrupted(futures):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def work(replica, shard):
        begun.append(shard.start)
        time.sleep(0.05)

    monkeypatch.setattr(workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.map(work, 100, 1)
    assert (count := len(begun)) < 20
    time.sleep(0.2)
    assert len(begun) == count


def test_a_model_that_nobody_holds_takes_its_threads_with_it():
    gc.disable()  # large arrays do not make Python look for cycles
    try:
        model = ParallelVAE(**SMALL)
        model.sample(3, np.random.default_rng(0))
        pool = weakref.ref(model.workers.pools[0])
        del model
        assert pool() is None
    finally:
        gc.enable()


@pytest.mark.skipif(backend.NAME != "numpy" or not hasattr(os, "sched_setaffinity"), reason="nothing is kept to a core")
def test_as_many_threads_as_cores_keep_to_one_each_and_fewer_are_left_alone(monkeypatch):
    cores = os.sched_getaffinity(0)

    def places(threads):
        everyone = threading.Barrier(threads, timeout=60)  # or one thread might do the work of all

        def place(replica, shard):
            everyone.wait()
            return os.sched_getaffinity(0)

        return Workers(VAE(**SMALL), threads).map(place, threads, size=1)

    kept = places(len(cores))
    assert sorted(kept, key=min) == [{core} for core in sorted(cores)]
    number = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: number)
    assert places(len(cores)) == kept[1:] + kept[:1], "the first thread of every process on one core"
    assert places(len(cores) + 1) == [cores] * (len(cores) + 1)
    assert os.sched_getaffinity(0) == cores, "the thread that calls goes where it likes"


@several_workers
@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process that it sends a signal to")
def test_what_is_divided_is_done_whole_after_ctrl_c(task):
    model, _, _ = task
    model.workers, done = Workers(model, 2), []

    def slow(part):
        time.sleep(0.2)
        done.append(part)

    blocked = threading.Event()
    model.workers.pools[1].submit(blocked.wait, 0.6)  # so that the second part begins after the signal
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        model.workers.divide(slow, 10)
    assert sorted(part.start for part in done) == [0, 5]
