"""What lesson 10 says about a GPU: its counts beside those of a step that runs, and what its text says of them."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tools import gpu, gpu_timing
from vae_np import VAE, backend, layers
from vae_np.fast import arrays, winograd
from vae_np.fast.workers import Workers
from vae_np.losses import Bernoulli
from vae_np.run.benchmark import REFERENCE

on_numpy = pytest.mark.skipif(backend.NAME != "numpy", reason="watches NumPy at work")
IMAGES, SMALL = 3, {"image_size": 16, "channels": (4, 6, 7), "latent_dim": 5, "shortcut": False}
TRANSFORMS = "input_transform", "input_transform_adjoint", "kernel_transform", "output_transform"
OTHERS = "unfold", "fold", "leaky", "leaky_gradient", "sum_rows"


class Watched(np.ndarray):
    """An array that notes every operation on it: its name, the shapes that it reads and the one that it writes."""

    log: list = []  # noqa: RUF012

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        different = {id(one): np.shape(one) for one in inputs if np.ndim(one)}
        inputs = [np.asarray(one) for one in inputs]
        result = getattr(ufunc, method)(*inputs, out=out and tuple(np.asarray(one) for one in out), **kwargs)
        Watched.log.append((ufunc.__name__, [*different.values()], result.shape))
        return out[0] if out else result


def numbers_of(entry):
    _, given, made = entry
    return sum(map(np.prod, given)) + np.prod(made)


def work(model, group, way="unfold"):
    return [launch for launch in gpu.launches(model, IMAGES, way) if launch.group == group]


def numbers(model, group, way="unfold"):
    return sum(launch.numbers for launch in work(model, group, way))


def numbers_in_a_step(monkeypatch):
    """Run a step: {name: numbers that passed through each function that is a kernel on a GPU}."""
    model, passed, product = VAE(**SMALL), dict.fromkeys((*TRANSFORMS, *OTHERS), 0), np.matmul
    Watched.log.clear()

    def watch(owner, name):
        original = getattr(owner, name)

        def watching(*args):
            result = original(*args)
            made = [] if name == "sum_rows" else [result]
            arrays = {id(one): one.size for one in (*args, *made) if isinstance(one, np.ndarray)}
            passed[name] += sum(arrays.values())
            return result

        monkeypatch.setattr(owner, name, watching)

    for owner, names in ((winograd, TRANSFORMS), (arrays, OTHERS), (layers, ["sum_rows"])):
        for name in names:
            watch(owner, name)
    monkeypatch.setattr(np, "matmul", lambda a, b, out=None: product(a.view(Watched), b, out=out))
    for parameter in model.parameters:
        parameter.value = parameter.value.view(Watched)  # for the operator @
    rng = np.random.default_rng(0)
    model.workers = Workers(model, 1)
    x, eps = rng.random((IMAGES, 16, 16, 3), np.float32), rng.standard_normal((IMAGES, 5), np.float32)
    model.loss_and_gradient(x, eps, Bernoulli())
    return passed | {"bias": sum(2 * np.prod(made) for name, given, made in Watched.log
                                 if name == "add" and len(given[-1]) == 1 < len(made))}


@on_numpy
@pytest.mark.parametrize("way", ["nine", "unfold"])
def test_counts_are_those_of_a_step_and_of_adams_array_code(way, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "FEWEST_CHANNELS", {"nine": 4, "unfold": 99}[way])
        patch.setattr(winograd, "Planes", arrays.Unfolding)
        patch.setattr(winograd, "FEWEST_TILES", 1)
        passed, fresh = numbers_in_a_step(patch), VAE(**SMALL)
    happened = [(2 * np.prod(made) * given[0][-1], numbers_of((name, given, made)))
                for name, given, made in Watched.log if name == "matmul"]
    assert sorted((one.operations, one.numbers) for one in work(fresh, "products", way)) == sorted(happened)
    assert numbers(fresh, "transforms", way) == sum(passed[name] for name in TRANSFORMS)
    # Two sizes of layers, in the encoder and in the decoder, each of whose copied numbers is read and written.
    tiles, kernels = 9 * IMAGES * (2 * 2 * 4 * 4 + 4 * 6), 9 * 4 * (4 * 6 + 6 * 7)
    assert numbers(fresh, "transposes", way) == (2 * 2 * (tiles + kernels) if way == "nine" else 0)
    assert numbers(fresh, "unfold, fold", way) == passed["unfold"] + passed["fold"]
    kept = sum(passed[name] for name in ("leaky", "leaky_gradient", "sum_rows", "bias"))
    assert numbers(fresh, "bias, activation", way) == kept
    Watched.log.clear()
    arrays.adam_step(*(np.ones(10, np.float32).view(Watched) for _ in range(4)), 0.9, 0.999, 1e-8, 1e-3, 1.0)
    assert [numbers_of(entry) for entry in Watched.log] == [10 * count for count in gpu.ADAM_PASSES]


def test_patches_that_are_never_written_the_loss_and_adam_by_hand():
    model = VAE(**SMALL)
    pairs = [(16, 3, 8, 4), (8, 4, 4, 6), (4, 6, 2, 7)]  # rows and channels of both sides, in the encoder and back
    products = 3 * [(2 * IMAGES * n * m, n * m + IMAGES * (n + m)) for n, m in ((28, 10), (5, 28))]
    for times, (large, fewer, small, more) in zip((2, 3, 3, 3, 3, 3), pairs + pairs, strict=True):
        weight, rows = 16 * fewer * more, IMAGES * small**2
        products += times * [(2 * rows * weight, IMAGES * large**2 * fewer + weight + rows * more)]
    assert sorted((one.operations, one.numbers) for one in work(model, "products", "direct")) == sorted(products)
    assert numbers(model, "unfold, fold", "direct") == numbers(model, "transforms", "direct") == 0
    assert numbers(model, "loss") == 5 * IMAGES * 16 * 16 * 3
    assert (numbers(model, "Adam"), sum(gpu.ADAM_PASSES)) == (7 * model.values.size, 32)


def test_what_the_text_says_is_true_of_the_reference_model():
    machine = gpu.Machine("", peak=5, bandwidth=4)
    assert [gpu.Launch("", 10, count).seconds(machine) for count in (1, 3)] == [2, 3], "the slower of two bounds"
    model, ridge = VAE(**REFERENCE), gpu.H100.peak / gpu.H100.bandwidth
    assert ridge == 20
    made = {way: gpu.launches(model, 512, way) for way in gpu.WAYS}
    time = {way: sum(launch.seconds(gpu.H100) for launch in made[way]) for way in gpu.WAYS}
    for group, some in itertools.groupby(sorted(made["unfold"]), key=lambda launch: launch.group):
        _, operations, count = zip(*some, strict=True)
        rate = sum(operations) / sum(4 * n for n in count)
        assert rate > ridge if group == "products" else rate < 1
    below = [launch.operations for launch in made["unfold"] if launch.group == "products"
             and launch.operations < ridge * 4 * launch.numbers]
    assert below == 5 * [2 * 512 * 32 * 32 * 4 * 4 * 3 * 32], "the ends: 2 and 3"
    assert time["direct"] < 0.95 * time["nine"] < 0.95 * 0.85 * time["unfold"]


def test_the_parts_print_and_draw(capsys, tmp_path):
    gpu.explain()
    output = capsys.readouterr().out
    assert "\nproducts                29    167.50     4.098            40.88             2.500" in output
    assert "83 launches have" in output
    gpu_timing.measure(tmp_path, 0.001)
    output = capsys.readouterr().out
    for words in ("One number times itself: ", "\none launch   ", "\nAdam   ", "\nConv2d(8 -> 16)  ",
                  "\nConvTranspose2d(16 -> 8)  ", "A whole step on 4 images: ", " its ridge point."):
        assert words in output
    with Image.open(tmp_path / "gpu.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1


def test_a_call_is_timed_once_it_is_compiled_and_until_the_device_is_done(monkeypatch):
    calls, clock = [], itertools.count()
    monkeypatch.setattr(gpu_timing, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(gpu_timing.time, "perf_counter", lambda: calls.append("clock") or next(clock))
    assert gpu_timing.fastest(2, calls.append, "work") == 1
    assert calls == ["work", *2 * ["wait", "clock", "work", "wait", "clock"]]
