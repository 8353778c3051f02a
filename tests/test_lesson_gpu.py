"""What lesson 10 says about a GPU: its counts beside those of a step that runs, and what its text says of them."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tools import gpu, gpu_timing
from vae_np import VAE, backend, conv, layers, optim
from vae_np.fast import winograd
from vae_np.losses import Bernoulli

on_numpy = pytest.mark.skipif(backend.NAME != "numpy", reason="watches NumPy at work")
IMAGES = 3


class Watched(np.ndarray):
    """An array that notes every operation on it: its name, the numbers that it reads and writes, its shapes."""

    log: list = []  # noqa: RUF012

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        different = {id(one): np.shape(one) for one in inputs if np.ndim(one)}
        inputs = [np.asarray(one) for one in inputs]
        result = getattr(ufunc, method)(*inputs, out=out and tuple(np.asarray(one) for one in out), **kwargs)
        Watched.log.append((ufunc.__name__, [*different.values()], result.shape))
        return out[0] if out else result


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(Watched, "log", [])
    return Watched.log


def numbers_of(entry):
    _, given, made = entry
    return sum(map(np.prod, given)) + np.prod(made)


def work(model, group, way="nine"):
    return [launch for launch in gpu.launches(model, IMAGES, way) if launch.group == group]


def numbers(model, group, way="nine"):
    return sum(launch.numbers for launch in work(model, group, way))


@pytest.fixture
def model():
    return VAE(16, channels=(4, 6, 7), latent_dim=5)


@pytest.fixture
def step(model, log, monkeypatch):
    """Runs a step and returns the numbers that passed through each function that is a kernel on a GPU."""
    passed = {}

    def watch(module, name, results=True):
        original = getattr(module, name)

        def watching(*args, **kwargs):
            result = original(*args, **kwargs)
            arrays = [one for one in args[:2] if isinstance(one, np.ndarray)]  # not the bias, which comes later
            arrays += [result] if results and isinstance(result, np.ndarray) else []
            passed[name] = passed.get(name, 0) + sum(array.size for array in arrays)
            return result

        monkeypatch.setattr(module, name, watching)

    for module, name in ((winograd, "tiles_of"), (winograd, "images_of"), (winograd, "nine_of_four"),
                         (winograd, "four_of_nine"), (conv, "unfold"), (conv, "fold"), (layers, "leaky_gradient")):
        watch(module, name)
    for module in (layers, conv, winograd):
        watch(module, "sum_rows", results=False)
    product = np.matmul

    def matmul(a, b, out=None):
        return product(a.view(Watched), b, out=out)

    monkeypatch.setattr(np, "matmul", matmul)
    for parameter in model.parameters:
        parameter.value = parameter.value.view(Watched)  # for the operator @

    def run():
        rng = np.random.default_rng(0)
        x = rng.random((IMAGES, 16, 16, 3), dtype=np.float32)
        model.loss_and_gradient(x, rng.standard_normal((IMAGES, 5), dtype=np.float32), Bernoulli())
        return dict(passed)

    return run


@on_numpy
def test_products_are_those_of_a_step(model, step, log):
    step()
    happened = [(2 * np.prod(made) * given[0][-1], numbers_of((name, given, made)))
                for name, given, made in log if name == "matmul"]
    counted = [(launch.operations, launch.numbers) for launch in work(VAE(**model.settings), "products")]
    assert sorted(counted) == sorted(happened)


@on_numpy
def test_traffic_is_that_of_a_step(model, step):
    passed, fresh = step(), VAE(**model.settings)
    transforms = sum(passed[name] for name in ("tiles_of", "images_of", "nine_of_four", "four_of_nine"))
    assert numbers(fresh, "transforms") == transforms
    # Two sizes of layers, in the encoder and in the decoder, each of whose copied numbers is read and written.
    tiles, kernels = 9 * IMAGES * (2 * 2 * 4 * 4 + 4 * 6), 9 * 4 * (4 * 6 + 6 * 7)
    assert numbers(fresh, "transposes") == 2 * 2 * (tiles + kernels)
    assert numbers(fresh, "unfold, fold") == passed["unfold"] + passed["fold"]
    dense = IMAGES * (10 + 2 * 2 * 7)
    first = IMAGES * 8 * 8 * 4
    assert numbers(fresh, "bias, activation") == passed["leaky_gradient"] + passed["sum_rows"] + 2 * (dense + first)


@on_numpy
def test_additions_of_the_transforms_are_those_of_the_array_code(log):
    pixels = np.ones((2, 2, 5, 3), np.float32).view(Watched)
    nine = np.ones((3, 3, 5, 3), np.float32).view(Watched)
    for function, arrays, additions in ((winograd.nine_of_four, (pixels, nine), 5),
                                        (winograd.four_of_nine, (nine, pixels), 10)):
        log.clear()
        function(*arrays, conv.Workspace())
        assert sum(np.prod(made) for _, _, made in log) == additions * 15
    model = VAE(16, channels=(4, 6), latent_dim=5)
    of_weights = 2 * (5 + 10) * 4 * 4 * 6  # four taps at a time, in the encoder and in the decoder
    of_images = 2 * (5 + 10) * IMAGES * 2 * 2 * 6
    tiles = 2 * IMAGES * 2 * 2 * 4 * 4  # the nines of two layers, whose larger side is 8x8x4
    of_tiles = tiles * (12 + 9)  # 2 * 3 differences of rows and as many of columns; back, each number is added once
    assert sum(launch.operations for launch in work(model, "transforms")) == of_weights + of_images + of_tiles


@on_numpy
def test_passes_of_adam_are_those_of_its_array_code(log):
    arrays = [np.ones(10, np.float32).view(Watched) for _ in range(4)]
    optim.adam_step(*arrays, 0.9, 0.999, 1e-8, 1e-3, 1.0)
    assert [numbers_of(entry) // 10 for entry in log] == list(gpu.ADAM_PASSES)
    assert all(numbers_of(entry) % 10 == 0 for entry in log)


def test_sixteen_products_by_hand(model):
    pairs = [((16, 16, 3), (8, 8, 4)), ((8, 8, 4), (4, 4, 6)), ((4, 4, 6), (2, 2, 7))]
    pairs += [pair[::-1] for pair in pairs]
    expected = {"direct": [], "unfold": []}
    for i, (one, other) in enumerate(pairs):
        (height, width, fewer), (h, w, more) = sorted((one, other), reverse=True)
        weight, rows = 4 * 4 * fewer * more, IMAGES * h * w
        for way, side in (("direct", IMAGES * height * width * fewer), ("unfold", rows * 4 * 4 * fewer)):
            expected[way] += [(2 * rows * weight, side + weight + rows * more)] * (2 if i == 0 else 3)
    dense = [(2 * IMAGES * n * m, n * m + IMAGES * (n + m)) for n, m in ((28, 10), (5, 28))]
    for way, products in expected.items():
        counted = [(launch.operations, launch.numbers) for launch in work(model, "products", way)]
        assert sorted(counted) == sorted(products + 3 * dense)
    assert numbers(model, "unfold, fold", "direct") == numbers(model, "transforms", "direct") == 0


def test_what_is_apart_makes_passes_of_its_own(model):
    outputs = [8 * 8 * 4, 4 * 4 * 6, 2 * 2 * 7, 4 * 4 * 6, 8 * 8 * 4, 16 * 16 * 3]  # of the convolutions
    activated = [*outputs[:3], 2 * 2 * 7, *outputs[3:5]]
    more = numbers(model, "bias, activation", "apart") - numbers(model, "bias, activation")
    assert more == 2 * IMAGES * (sum(outputs[1:]) + sum(activated)), "the first layer's bias is apart anyway"
    assert numbers(model, "Adam", "apart") == 32 * model.values.size
    assert numbers(model, "Adam") == 7 * model.values.size
    assert numbers(model, "loss") == 5 * IMAGES * 16 * 16 * 3


def test_the_slower_of_the_two_bounds_a_launch():
    machine = gpu.Machine("", peak=5, bandwidth=4)
    assert gpu.Launch("", operations=10, numbers=1).seconds(machine) == 2
    assert gpu.Launch("", operations=10, numbers=3).seconds(machine) == 3


def test_what_the_text_says_is_true_of_the_default_model():
    model, ridge = VAE(), gpu.H100.peak / gpu.H100.bandwidth
    assert ridge == 20
    made = {way: gpu.launches(model, 512, way) for way in gpu.WAYS}
    time = {way: sum(launch.seconds(gpu.H100) for launch in made[way]) for way in gpu.WAYS}
    by_group = itertools.groupby(sorted(made["nine"]), key=lambda launch: launch.group)
    for group, some in ((group, list(some)) for group, some in by_group):
        rate = sum(launch.operations for launch in some) / sum(4 * launch.numbers for launch in some)
        assert rate > ridge if group == "products" else rate < 1
    below = [launch for launch in made["nine"] if launch.group == "products"
             and launch.operations < ridge * 4 * launch.numbers]
    assert [launch.operations for launch in below] == 5 * [2 * 512 * 32 * 32 * 4 * 4 * 3 * 32], "the ends: 2 and 3"
    assert time["direct"] < 0.95 * time["nine"] < 0.95 * 0.85 * time["unfold"]
    assert time["apart"] > 1.1 * time["nine"]


def test_the_parts_print_and_draw(capsys, tmp_path):
    gpu.explain()
    output = capsys.readouterr().out
    assert "\nproducts                29     99.86     3.326            30.03             1.490" in output
    assert "104 launches have" in output
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
    once = ["wait", "clock", "work", "wait", "clock"]
    assert calls == ["work", *once, *once]
