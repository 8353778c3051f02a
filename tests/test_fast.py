"""Each class in the table of vae_np/fast, and each function, against the plain one whose place it takes."""

import inspect
from unittest import mock

import numpy as np
import pytest

from vae_np import VAE, backend, conv, fast, layers, losses, optim
from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import InputError
from vae_np.fast import arrays, products, workers
from vae_np.layers import Dense, LeakyReLU
from vae_np.losses import Bernoulli, CalibratedGaussian, Gaussian
from vae_np.optim import Adam

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-5)])


class Draw:
    """Random arrays of one dtype on the device, the same ones every time."""

    def __init__(self, dtype):
        self.rng, self.dtype = np.random.default_rng(0), dtype

    def __call__(self, *shape):
        return to_device(self.rng.standard_normal(shape).astype(self.dtype))

    def images(self, *shape):
        return to_device(self.rng.random(shape).astype(self.dtype))


# An example is a generator of whatever the class computes. It makes the plain class, or what the table makes of it.


def passes(layer, draw, *shapes):
    """Forward and backward, twice on inputs of each shape, with other weights each time, as training has them."""
    kept = []
    for shape in (shape for shape in shapes for _ in range(2)):
        for parameter in layer.parameters:
            parameter.value += draw(*parameter.value.shape)
        x = draw(*shape)
        y = layer.forward(x)
        dy = draw(*y.shape)
        yield y
        layer.backward_parameters(dy)
        yield from (parameter.grad for parameter in layer.parameters)
        kept += [x, y, dy, layer.backward(dy)]
        yield from (parameter.grad for parameter in layer.parameters)
    yield from kept  # nothing that was given or returned may have changed


def dense(draw):
    with mock.patch.object(products, "has_small_kernels", lambda: backend.NAME != "cupy"):
        yield from passes(Dense(70, 48, draw.rng, dtype=draw.dtype, rate=0.5), draw, (16, 70), (40, 70), (1, 70))
        yield from passes(Dense(2048, 48, draw.rng, dtype=draw.dtype, rate=0.5), draw, (16, 2048))


def leaky(draw):
    for slope in (0.3, 0.0, 1.0):
        yield from passes(LeakyReLU(slope), draw, (3, 8), (2, 5, 4))


def convolution(kind):
    """Both ways of a convolution in turn, and what only unfolds: another geometry, few channels."""
    def example(draw):
        yield from passes(kind(5, 6, 4, draw.rng, 2, 1, dtype=draw.dtype), draw,
                          (2, 8, 4, 5), (3, 5, 7, 5), (5, 4, 8, 5), (1, 8, 4, 5), (0, 8, 4, 5))
        yield from passes(kind(5, 6, 3, draw.rng, 2, 2, dtype=draw.dtype), draw, (2, 6, 5, 5))
        yield from passes(kind(2, 3, 4, draw.rng, 2, 1, dtype=draw.dtype), draw, (2, 8, 8, 2))
    return example


def likelihood(make):
    def example(draw):
        judge = make()
        for count in (3, 2):
            logits, x = 3 * draw(count, 4, 6, 3), draw.images(count, 4, 6, 3)
            recon, dlogits = judge(logits, x)
            judge.follow(recon, x)
            yield from (recon, dlogits, judge.log_likelihood(logits, x), logits, x)
            yield from [] if judge.sigma is None else [judge.sigma]
    return example


def adam(draw):
    size = arrays.BLOCK + 50
    made = Adam(draw(size), draw(size), epsilon=1e-3)
    for rate in (0.1, 0.02, 0.3):
        made.update(rate)
        yield from (made.values, made.m, made.v, made.grads)
        made.grads[...] = 100 * draw(size)


def whole_model(draw):
    model, weights = VAE(16, channels=(4, 6), latent_dim=5, dtype=draw.dtype), to_device(np.array([1, 0, 1, 0.5, 1]))
    model.workers = workers.Workers(model, 2)  # at which a plain one does not look
    x, eps = draw.images(50, 16, 16, 3), draw(50, 5)
    with mock.patch.object(workers, "SHARD_SIZE", 20):  # four shards for two; of three images, two
        for count, kind, beta in ((50, Bernoulli, weights), (3, Gaussian, 0.7), (50, CalibratedGaussian, 0.7)):
            yield from (*model.loss_and_gradient(x[:count], eps[:count], kind(), beta), model.grads)
        yield from (model.values, model.latent_kl(x), model.latent_kl(x[:1]))
        x, eps = to_cpu(x), to_cpu(eps)
        yield from map(to_device, (*model.encode(x), model.decode(eps), model.sample(3, draw.rng),
                                   *model.in_parts(lambda model, a, b: [a + b, a], eps, eps)))


EXAMPLES = {Dense: dense, LeakyReLU: leaky, Conv2d: convolution(Conv2d), ConvTranspose2d: convolution(ConvTranspose2d),
            Bernoulli: likelihood(Bernoulli), Gaussian: likelihood(lambda: Gaussian(0.3)),
            CalibratedGaussian: likelihood(CalibratedGaussian), Adam: adam, VAE: whole_model}  # fmt: skip
GEOMETRIES = [(4, 2, 1), (3, 1, 0), (3, 2, 2), (2, 3, 0), (5, 3, 1)]  # the fourth covers some pixels with no patch
CALLS = {
    "unfold": [((2, 7, 9, 3), geometry) for geometry in GEOMETRIES],
    "fold": [((2 * conv.conv_size(7, *geometry) * conv.conv_size(9, *geometry), geometry[0] ** 2 * 3),
              ((2, 7, 9, 3), *geometry)) for geometry in GEOMETRIES],
    "sum_rows": [((4, 3), ()), ((2, 5, 4, 3), ()), ((0, 3), ()), ((0, 5, 4, 3), ())],
}
FUNCTIONS = {name: (getattr(core, name), function) for core in (conv, layers, losses, optim)
             for name, function in vars(arrays).items()
             if inspect.isfunction(function) and function.__module__ == arrays.__name__ and hasattr(core, name)}


def assert_same(sooner, plain, tolerance):
    for one, other in zip(sooner, plain, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max(initial=0))


@DTYPES
@pytest.mark.parametrize("kind", fast.replacements(), ids=lambda kind: kind.__name__)
def test_a_faster_class_computes_what_the_plain_one_does(kind, dtype, tolerance, both_ways, monkeypatch):
    plain, sooner = both_ways(lambda: [to_cpu(array).copy() for array in EXAMPLES[kind](Draw(dtype))])
    assert_same(sooner, plain, tolerance)
    assert issubclass(backend.FASTER[kind], kind)
    monkeypatch.setitem(backend.FASTER, kind, object)
    with pytest.raises((AttributeError, TypeError), match="'object' object"):  # or the example would make none
        [*EXAMPLES[kind](Draw(dtype))]


@DTYPES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_faster_function_computes_what_the_plain_one_does(name, dtype, tolerance):
    plain, sooner = FUNCTIONS[name]
    for shape, arguments in CALLS[name]:
        draw, kept = Draw(dtype), "workspace" in inspect.signature(sooner).parameters
        workspace = [arrays.Workspace()] if kept else []
        sooner(np.nan * draw(*shape), *arguments, *workspace)  # of which nothing may be left
        x = draw(*shape)
        assert_same([to_cpu(sooner(x, *arguments, *workspace))], [to_cpu(plain(x, *arguments))], tolerance)


@pytest.mark.parametrize("shape", [(2, 0, 8, 5), (2, 8, 0, 5), (2, 8, 8, 4), (8, 8, 5)])
@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_what_a_plain_convolution_refuses_is_refused_in_the_same_words(kind, shape, both_ways, rng):
    def words():
        with pytest.raises(InputError) as error:
            kind(5, 6, 4, rng, 2, 1).forward(to_device(np.zeros(shape)))
        return str(error.value)

    plain, sooner = both_ways(words)
    assert sooner == plain
