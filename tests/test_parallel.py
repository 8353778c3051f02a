"""A batch split over threads must give what the whole batch gives."""

import gc
import os
import threading
import time
import weakref

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device
from vae_np.fast import workers as parallel
from vae_np.fast.workers import Workers
from vae_np.gradcheck import relative_error
from vae_np.losses import LIKELIHOODS, Bernoulli, CalibratedGaussian, squared_error
from vae_np.run.trainer import Settings, Trainer

COUNT = 13
several_workers = pytest.mark.skipif(backend.NAME != "numpy", reason="a GPU has one worker")


@pytest.fixture
def task(rng):
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5, dtype="float64")
    return model, to_device(rng.random((COUNT, 16, 16, 3))), to_device(rng.standard_normal((COUNT, 5)))


def floats(terms):
    return [float(term) for term in terms]


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize(("threads", "shard"), [(1, 4), (2, 3), (3, 5), (2, 100), (4, 5)])
def test_equals_the_whole_batch(task, threads, shard, name, monkeypatch):
    monkeypatch.setattr(parallel, "SHARD_SIZE", shard)
    model, x, eps = task
    whole = LIKELIHOODS[name]()
    if isinstance(whole, CalibratedGaussian):
        whole.calibrate(squared_error(model.forward(x, eps)[0], x), x.size)
    terms = floats(model.loss_and_gradient(x, eps, whole, beta=0.7))
    gradient = to_cpu(model.grads).copy()
    likelihood, workers = LIKELIHOODS[name](), Workers(model, threads)
    for _ in range(2):  # sums of an earlier batch must not leak into the next
        model.grads[...] = 99
        split = floats(workers.loss_and_gradient(x, eps, likelihood, beta=0.7))
        np.testing.assert_allclose(split, terms, rtol=1e-10)
        np.testing.assert_allclose(to_cpu(model.grads), gradient, rtol=1e-8, atol=1e-10)
    assert float(likelihood.sigma) == pytest.approx(float(whole.sigma)) if whole.sigma else likelihood.sigma is None


def test_a_shorter_batch_after_a_longer_one(task, monkeypatch):
    monkeypatch.setattr(parallel, "SHARD_SIZE", 4)
    model, x, eps = task
    workers = Workers(model, 3)
    workers.loss_and_gradient(x, eps, Bernoulli())
    workers.loss_and_gradient(x[:2], eps[:2], Bernoulli())  # two shards of one: a worker has nothing to do
    split = to_cpu(model.grads).copy()
    model.loss_and_gradient(x[:2], eps[:2], Bernoulli())
    np.testing.assert_allclose(split, to_cpu(model.grads), rtol=1e-8, atol=1e-10)


def test_the_same_bits_every_time(task):
    model, x, eps = task
    gradients = []
    for _ in range(3):
        Workers(model, 2).loss_and_gradient(x, eps, Bernoulli())
        gradients.append(to_cpu(model.grads).copy())
    np.testing.assert_array_equal(gradients[0], gradients[1])
    np.testing.assert_array_equal(gradients[0], gradients[2])


@several_workers
def test_the_number_of_threads_changes_the_gradient_of_the_default_model_by_rounding_only(rng):
    model = VAE()
    x, eps = to_device(rng.random((48, 64, 64, 3), np.float32)), to_device(rng.standard_normal((48, 128), np.float32))
    terms, gradients = [], []
    for threads in (1, 2, 3):
        terms.append(floats(Workers(model, threads).loss_and_gradient(x, eps, Bernoulli())))
        gradients.append(to_cpu(model.grads).copy())
    for i in (1, 2):
        np.testing.assert_allclose(terms[i], terms[0], rtol=1e-5)
        assert relative_error(gradients[i], gradients[0]) < 1e-4


@pytest.fixture
def busy():
    """Another thread that takes all the time it can get, in Python and in BLAS, while a test runs."""
    stop, a = threading.Event(), np.ones((200, 200))

    def work():
        while not stop.is_set():
            a @ a
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


def steps_of(dataset, threads, likelihood, delay=lambda: None):
    """The bits of all parameters after each of five training steps, in which `delay` holds each shard up."""
    settings = Settings(batch_size=24, likelihood=likelihood, warmup_steps=0)
    trainer = Trainer(VAE(image_size=16, channels=(4, 6), latent_dim=5), dataset, settings, threads)
    for replica in trainer.workers.replicas:
        def held_up(*arguments, original=replica.loss_and_gradient, **options):
            delay()
            return original(*arguments, **options)

        replica.loss_and_gradient = held_up
    x, bits = to_device(dataset.split("train").astype(np.float32) / 255), []
    for _ in range(5):
        trainer.train_step(x)
        bits.append(to_cpu(trainer.model.values).tobytes())
    return bits


@pytest.mark.parametrize("likelihood", ["bernoulli", "calibrated"])
@pytest.mark.parametrize("threads", [1, *(pytest.param(threads, marks=several_workers) for threads in (2, 3))])
def test_training_gives_the_same_bits_however_long_each_shard_takes(ramps, threads, likelihood, busy, monkeypatch):
    monkeypatch.setattr(parallel, "SHARD_SIZE", 3)  # eight shards: more than one for each worker
    expected = steps_of(ramps, threads, likelihood)
    assert len(set(expected)) == 5
    for seed in range(2):
        durations = np.random.default_rng(seed).choice([0, 0.004], 1000).tolist()
        assert steps_of(ramps, threads, likelihood, lambda left=durations: time.sleep(left.pop())) == expected


def test_map_covers_every_index_once_and_in_order(task, monkeypatch):
    monkeypatch.setattr(parallel, "SHARD_SIZE", 3)
    shards = Workers(task[0], 2).map(lambda worker, shard: list(range(shard.start, shard.stop)), 11)
    assert [i for shard in shards for i in shard] == list(range(11))


@several_workers
def test_every_worker_gets_a_share_of_a_small_batch(task):
    shards = Workers(task[0], 4).map(lambda worker, shard: shard.stop - shard.start, 8)
    assert shards == [2, 2, 2, 2]


@several_workers
def test_an_error_in_a_worker_is_raised_once_all_are_at_rest(task):
    at_rest = []

    def fail(worker, shard):
        if worker == 0:
            raise RuntimeError(f"shard {shard.start}")
        time.sleep(0.2)
        at_rest.append(worker)

    with pytest.raises(RuntimeError, match="shard 0"):
        Workers(task[0], 2).map(fail, 2)
    assert at_rest == [1]


@pytest.mark.skipif(not threadpool_info(), reason="threadpoolctl knows no way to limit this BLAS")
def test_blas_is_held_to_one_thread_while_workers_run(task):
    def threads(worker, shard):
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = threads(0, None)
    assert Workers(task[0], 2).map(threads, 2, 1) == [[1] * len(before)] * 2
    assert threads(0, None) == before


def test_after_ctrl_c_no_worker_goes_on(task, monkeypatch):
    # A notebook's reader interrupts a cell and runs the next one: it must not meet the workers of the first.
    workers, begun = Workers(task[0], 2), []

    def interrupted(futures):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def work(worker, shard):
        begun.append(shard.start)
        time.sleep(0.05)

    monkeypatch.setattr(parallel, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.map(work, 100, 1)
    count = len(begun)
    assert count < 20
    time.sleep(0.2)
    assert len(begun) == count


def test_a_model_that_nobody_holds_takes_its_threads_with_it():
    gc.disable()  # large arrays do not make Python look for cycles
    try:
        model = VAE(image_size=16, channels=(4, 6), latent_dim=5)
        model.sample(3, np.random.default_rng(0))
        pool = weakref.ref(model.workers.pool)
        del model
        assert pool() is None
    finally:
        gc.enable()


@pytest.mark.skipif(backend.NAME != "numpy" or not hasattr(os, "sched_setaffinity"), reason="nothing is kept to a core")
def test_as_many_threads_as_cores_keep_to_one_each_and_fewer_are_left_alone():
    cores = os.sched_getaffinity(0)

    def places(threads):
        everyone = threading.Barrier(threads, timeout=60)  # or one thread might do the work of all

        def place(worker, shard):
            everyone.wait()
            return os.sched_getaffinity(0)

        return Workers(VAE(16, (4, 8), 5), threads).map(place, threads, size=1)

    assert sorted(places(len(cores)), key=min) == [{core} for core in sorted(cores)]
    assert places(len(cores) + 1) == [cores] * (len(cores) + 1)
    assert os.sched_getaffinity(0) == cores, "the thread that calls goes where it likes"
