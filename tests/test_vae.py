"""The whole model: gradients of the whole ELBO, one draw of noise, shapes, dtypes, and what it refuses."""

import copy
import itertools
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from chance import assert_like_draws, assert_uncorrelated
from conftest import make_forgetful

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import InputError
from vae_np.fast import workers
from vae_np.fast.cores import one_blas_thread
from vae_np.gradcheck import check_direction, relative_error
from vae_np.layers import Dense
from vae_np.losses import LIKELIHOODS, Bernoulli, CalibratedGaussian, kl_divergence, sigmoid
from vae_np.optim import Adam
from vae_np.study.flow import FlowPrior
from vae_np.study.priors import GaussianPrior
from vae_np.train import Settings, Training

pytestmark = pytest.mark.usefixtures("way")
SMALL = {"image_size": 16, "channels": (4, 6), "latent_dim": 5}


def layers_of(model):
    return [layer for network in (model.encoder, model.decoder) for path in network.paths for layer in path.layers]


def batch(rng, model, count=3):
    size = model.image_size
    x = rng.random((count, size, size, 3), dtype=model.dtype)
    return to_device(x), to_device(rng.standard_normal((count, model.latent_dim), dtype=model.dtype))


def test_the_gradient_of_each_parameter_alone(rng):
    # The table of gradients moves all of the encoder or the decoder, where a small one hides behind a large one.
    model, likelihood, beta = VAE(**SMALL, dtype="float64"), CalibratedGaussian(), 0.3
    x, eps = batch(rng, model)

    def loss():
        logits, mu, log_var = model.forward(x, eps)
        return likelihood(logits, x)[0] + beta * kl_divergence(mu, log_var)[0]

    recon, kl = model.loss_and_gradient(x, eps, likelihood, beta)
    assert math.isclose(float(recon + beta * kl), float(loss()), rel_tol=1e-12)
    for parameter, gradient in [(parameter, parameter.grad.copy()) for parameter in model.parameters]:
        assert check_direction(loss, parameter.value, gradient, rng) < 1e-6, parameter


@pytest.mark.parametrize("way", ["fast"], indirect=True)  # once, since it goes both ways by itself
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_two_steps_of_training_are_the_same_on_both_ways(name, dtype, tolerance, rng, both_ways):
    x, eps = batch(rng, VAE(**SMALL, dtype=dtype), count=7)
    kinds = []

    def train():
        model, likelihood = VAE(**SMALL, dtype=dtype), LIKELIHOODS[name]()
        adam, results = Adam(model.values, model.grads), []
        kinds.append({type(thing) for thing in (model, likelihood, adam, *layers_of(model))})
        for _ in range(2):  # the second with other parameters
            beta = 10 * model.latent_kl(x)  # any number for each latent
            results += [beta, *model.loss_and_gradient(x, eps, likelihood, beta), model.grads.copy()]
            adam.update(1e-3)
        return [to_cpu(array) for array in results] + [*model.encode(to_cpu(x)), model.decode(to_cpu(eps))]

    for plain, fast in zip(*both_ways(train), strict=True):
        assert relative_error(plain, fast) < tolerance
    assert not kinds[0] & set(backend.FASTER.values()), "or the comparison would say little"
    assert not kinds[1] & backend.FASTER.keys(), "or the comparison would say little"


def test_z_has_the_mean_and_variance_that_the_encoder_says(rng, monkeypatch):
    mu, log_var = np.array([1.5, -2.0, 0.0, 3.0, 0.5]), np.log([4.0, 0.25, 1.0, 0.01, 9.0])
    model, codes = VAE(**SMALL, steady=False), []
    dense, decode = model.encoder.paths[0].layers[-1], model.decoder.forward
    for path in model.encoder.paths:
        path.layers[-1].weight.value[...] = 0
    dense.bias.value[...] = to_device(np.concatenate([mu, log_var]).astype(np.float32))
    monkeypatch.setattr(model.decoder, "forward", lambda z: codes.append(to_cpu(z)) or decode(z))
    x, eps = batch(rng, model, count=2000)
    model.forward(x, eps)
    # A log variance of ln 4 is a deviation of 2.
    np.testing.assert_allclose(codes[0], mu + np.array([2, 0.5, 1, 0.1, 3]) * to_cpu(eps), rtol=1e-5, atol=1e-5)
    assert_like_draws(codes[0], mu, np.exp(log_var))


def test_forward_and_backward_draw_no_noise_of_their_own(rng, monkeypatch):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    model.loss_and_gradient(x, eps, Bernoulli())  # replicas draw weights, which they then forget
    first = to_cpu(model.grads).copy()

    def forbidden(*args, **kwargs):
        raise AssertionError("noise was drawn")

    monkeypatch.setattr(np.random, "default_rng", forbidden)
    monkeypatch.setattr(np.random, "standard_normal", forbidden)
    model.loss_and_gradient(x, eps, Bernoulli())
    np.testing.assert_array_equal(to_cpu(model.grads), first)
    model.loss_and_gradient(x, -eps, Bernoulli())
    assert not np.array_equal(to_cpu(model.grads), first), "the noise that is given must matter"


def test_everything_stays_float32_and_nothing_that_was_given_or_returned_changes(rng):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    arrays = [x, eps, *model.forward(x, eps), *model.loss_and_gradient(x, eps, Bernoulli())]
    arrays += [*model.encode(to_cpu(x)), model.decode(to_cpu(eps)), model.sample(2, rng), model.reconstruct(to_cpu(x))]
    kept = [array.copy() for array in arrays]
    model.reconstruct(rng.random((3, 16, 16, 3), dtype=np.float32))
    model.loss_and_gradient(*batch(rng, model), Bernoulli())
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(to_cpu(array), to_cpu(before))
    arrays += [array for parameter in model.parameters for array in (parameter.value, parameter.grad)]
    assert {array.dtype for array in (*arrays, model.values, model.grads)} == {np.dtype("float32")}


@pytest.mark.parametrize("beta", [np.float64(0.5), np.full(5, 0.5)], ids=["a number", "one for each latent"])
def test_a_beta_of_numpys_float64_does_not_make_gradients_float64(rng, monkeypatch, beta):
    model, seen, backward = VAE(**SMALL), [], VAE.backward
    x, eps = batch(rng, model)
    monkeypatch.setattr(VAE, "backward", lambda self, *gradients: seen.extend(gradients) or backward(self, *gradients))
    model.loss_and_gradient(x, eps, Bernoulli(), beta=beta if np.ndim(beta) == 0 else to_device(beta))
    assert {gradient.dtype for gradient in seen} == {np.dtype("float32")}


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_image_sizes(size, rng):
    model = VAE(image_size=size, channels=(4, 6, 8, 10), latent_dim=7)
    x, eps = batch(rng, model, count=2)
    logits, mu, log_var = model.forward(x, eps)
    assert (logits.shape, mu.shape, log_var.shape) == ((2, size, size, 3), (2, 7), (2, 7))
    model.loss_and_gradient(x, eps, Bernoulli())
    assert np.isfinite(to_cpu(model.grads)).all()
    assert model.reconstruct(to_cpu(x)).shape == (2, size, size, 3)


def test_the_default_model():
    model = VAE()
    assert model.values.size == 2_624_659
    shapes = [layer.weight.value.shape for layer in layers_of(model) if layer.parameters]
    assert shapes == [(4, 4, 3, 24), (4, 4, 24, 48), (4, 4, 48, 96), (4, 4, 96, 192), (3072, 320), (768, 320),
                      (160, 3072), (4, 4, 96, 192), (4, 4, 48, 96), (4, 4, 24, 48), (4, 4, 3, 24), (160, 768)]
    assert repr(model) == ("VAE(image_size=64, channels=(24, 48, 96, 192), latent_dim=160): 2,624,659 parameters")


def test_the_initial_weights_of_every_layer_are_like_draws_of_its_variance_and_the_seed_decides_them():
    # How many products an output pixel sums, counted by hand: a 4x4 kernel meets 16 pixels of every channel, but at
    # stride 2 the transposed one meets an output pixel from 4 pixels only.
    def products(layer, shape):
        return shape[0] if isinstance(layer, Dense) else 16 * shape[2] if isinstance(layer, Conv2d) else 4 * shape[3]

    model, draws = VAE(), []
    for network in (model.encoder, model.decoder):
        for path in network.paths:
            layers = [layer for layer in path.layers if layer.parameters]
            for layer in layers:
                weight, bias = (to_cpu(parameter.value) for parameter in layer.parameters)
                gain2 = 1 if layer is layers[-1] else 2 / (1 + 0.2**2)  # no activation behind the last, or LeakyReLU
                rate = getattr(layer, "rate", 1)
                assert rate == (0.1 if network is model.encoder and isinstance(layer, Dense) else 1)
                assert_like_draws(rate * weight.reshape(-1, 1), 0, gain2 / products(layer, weight.shape))
                assert not bias.any()
                draws.append(weight.ravel())
    assert len(draws) == 12
    for i, j in itertools.combinations(range(12), 2):
        shared = min(len(draws[i]), len(draws[j]))
        assert_uncorrelated(draws[i][:shared], draws[j][:shared])
    np.testing.assert_array_equal(to_cpu(VAE(seed=0).values), to_cpu(model.values))
    assert_uncorrelated(to_cpu(VAE(seed=1).values), to_cpu(model.values))


def test_activations_keep_their_scale_through_the_whole_model(rng):
    model = VAE()
    for network, shape in ((model.encoder, (8, 64, 64, 3)), (model.decoder, (8, 160))):
        h = to_device(rng.standard_normal(shape, dtype=np.float32))
        for layer in network.paths[0].layers:
            h = layer.forward(h)
            if not isinstance(layer, (Conv2d, ConvTranspose2d, Dense)) or layer is network.paths[0].layers[-1]:
                inner = to_cpu(h)[:, 2:-2, 2:-2] if h.ndim == 4 and h.shape[1] > 8 else to_cpu(h)
                # The zeros of the padding take some away, most of it where images are 4x4: 0.75 to 1.1 over many seeds.
                assert 0.65 < np.sqrt(np.mean(inner**2)) < 1.3, layer


def test_the_encoder_sees_centred_images_and_both_paths_add_up(rng):
    model = VAE(**SMALL)
    x, _ = batch(rng, model)
    deep, straight = model.encoder.paths
    seen = 4 * (x - 0.5)
    small = to_cpu(seen).reshape(3, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(3, 48)  # a quarter of the size
    weight, bias = (to_cpu(parameter.value) for parameter in straight.parameters)
    h = to_cpu(deep.forward(seen)) + 0.1 * small @ weight + bias
    mu, log_var = model.encode(to_cpu(x))
    np.testing.assert_allclose(mu, h[:, :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(1 / np.exp(log_var), 1 + np.exp(h[:, 5:]), rtol=1e-4, err_msg="precisions add up")
    z = to_device(rng.standard_normal((3, 5), dtype=np.float32))
    deep, straight = model.decoder.paths
    weight, bias = (to_cpu(parameter.value) for parameter in straight.parameters)
    small = (to_cpu(z) @ weight + bias).reshape(3, 4, 4, 3)
    places = (np.arange(16) + 0.5) / 4 - 0.5  # of the pixels, between those of the small picture
    for axis in (1, 2):
        small = np.apply_along_axis(lambda line: np.interp(places, range(4), line), axis, small)
    logits = to_cpu(deep.forward(z)) + small.astype(np.float32)
    np.testing.assert_allclose(model.decode(to_cpu(z)), to_cpu(sigmoid(to_device(logits))), rtol=1e-4, atol=1e-6)
    plain = VAE(**SMALL, centred=False, shortcut=False)
    np.testing.assert_allclose(plain.encode(to_cpu(x))[0], to_cpu(plain.encoder.paths[0].forward(x))[:, :5], rtol=1e-4,
                               atol=1e-6)


@pytest.mark.parametrize("h", [-1e4, -100, 100, 1e4])
def test_whatever_the_encoder_says_the_loss_and_its_gradient_are_finite(h, rng):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    model.encoder.paths[0].layers[-1].bias.value[5:] = h
    recon, kl = model.loss_and_gradient(x, eps, Bernoulli())
    assert np.isfinite([float(recon), float(kl)]).all()
    assert np.isfinite(to_cpu(model.grads)).all()
    assert (model.encode(to_cpu(x))[1] <= 0).all(), "the prior's variance is 1"


def test_encode_decode_reconstruct_agree_with_forward(rng):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    logits, mu, log_var = (to_cpu(array).copy() for array in model.forward(x, eps))
    for got, expected in zip(model.encode(to_cpu(x)), (mu, log_var), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    z = mu + np.exp(log_var / 2) * to_cpu(eps)
    np.testing.assert_allclose(model.decode(z), 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.reconstruct(to_cpu(x)), model.decode(mu), rtol=1e-5, atol=1e-6)


def test_samples_are_decoded_from_codes_of_the_prior_and_new_ones_every_time(rng):
    model, fitted = VAE(**SMALL), GaussianPrior(np.arange(5), np.diag([4.0, 1, 1, 0.25, 1]))
    for temperature in (1.0, 0.5):
        codes = np.float32(temperature) * np.random.default_rng(5).standard_normal((6, 5), dtype=np.float32)
        for prior, z in ((None, codes), (fitted, fitted.sample(6, np.random.default_rng(5), temperature))):
            model.prior, generator = prior, np.random.default_rng(5)
            faces = model.sample(6, generator, temperature)
            np.testing.assert_array_equal(faces, model.decode(z.astype(np.float32)))
            assert not np.array_equal(model.sample(6, generator, temperature), faces)
    assert VAE(**SMALL, dtype="float64").sample(2, rng).dtype == np.float64


def test_long_inputs_go_through_in_shards_and_come_out_the_same_on_any_number_of_threads(way, rng):
    model = VAE(**SMALL)
    x = rng.random((70, 16, 16, 3), dtype=np.float32)
    mu = model.encode(x)[0]
    np.testing.assert_allclose(mu[50:53], model.encode(x[50:53])[0], rtol=1e-5, atol=1e-6)
    images = model.decode(mu)
    assert images.shape == (70, 16, 16, 3)
    assert 0 <= images.min() < images.max() <= 1
    for threads in (1, 2, 3) if way == "fast" else ():
        model.workers = workers.Workers(model, threads)
        np.testing.assert_array_equal(model.reconstruct(x), images)
    assert (model.encode(x[:0])[0].shape, model.decode(mu[:0]).shape) == ((0, 5), (0, 16, 16, 3))


GOOD = np.full((2, 16, 16, 3), 0.5, np.float32)


def with_one_pixel(value):
    x = GOOD.copy()
    x[1, 3, 4, 2] = value
    return x


@pytest.mark.parametrize(("x", "complaint"), [
    ((GOOD * 255).astype(np.uint8), "got uint8"),
    (GOOD.astype(np.float64), "got float64"),
    (GOOD * 2 - 2, "got values from -1 to -1"),
    (with_one_pixel(1.01), "got values from 0.5 to 1.01"),
    (with_one_pixel(-0.01), "got values from -0.01 to 0.5"),
    (with_one_pixel(np.inf), "got values from 0.5 to inf"),
    (with_one_pixel(np.nan), "got values from nan to nan"),
    (GOOD.transpose(0, 3, 1, 2), r"got shape \(2, 3, 16, 16\)"),
    (GOOD[0], r"got shape \(16, 16, 3\)"),
    (GOOD[:, ::2, ::2], r"got shape \(2, 8, 8, 3\)"),
    ([[0.5]], "got list"),
])
def test_images_of_any_other_kind_are_refused(x, complaint):
    model, eps = VAE(**SMALL), np.zeros((len(x), 5), np.float32)
    expected = r"expected images as a float32 array \(N, 16, 16, 3\) with values in \[0, 1\], "
    with pytest.raises(InputError, match=expected + complaint):
        model.encode(x)
    with pytest.raises(InputError, match=expected + complaint):
        model.forward(x, eps)
    with pytest.raises(InputError, match=expected):
        model.loss_and_gradient(x, eps, Bernoulli())


@pytest.mark.parametrize(("eps", "complaint"), [
    (np.zeros((2, 5)), "noise as a float32 array, got float64"),
    (np.zeros((3, 5), np.float32), r"noise of shape \(2, 5\), got shape \(3, 5\)"),
    (np.zeros((2, 4), np.float32), r"noise of shape \(2, 5\), got shape \(2, 4\)"),
    (0.0, "got float"),
])
def test_noise_of_any_other_kind_is_refused(eps, complaint):
    model = VAE(**SMALL)
    with pytest.raises(InputError, match=complaint):
        model.forward(to_device(GOOD), eps)
    with pytest.raises(InputError, match=complaint):
        model.loss_and_gradient(to_device(GOOD), eps, Bernoulli())


def test_codes_of_any_other_kind_are_refused():
    with pytest.raises(InputError, match=r"codes of shape \(N, 5\), got shape \(2, 4\)"):
        VAE(**SMALL).decode(np.zeros((2, 4), np.float32))
    with pytest.raises(InputError, match="codes as a float32 array, got float64"):
        VAE(**SMALL).decode(np.zeros((2, 5)))


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"image_size": 60}, "divisible by 16, since 4 layers halve it; 60 is not, 64 is"),
    ({"image_size": 8}, "8 is not, 16 is"),
    ({"image_size": 0}, "image_size must be a whole number, 1 or more, not 0"),
    ({"image_size": (64, 64)}, r"image_size must be a whole number, 1 or more, not \(64, 64\)"),
    ({"channels": ()}, "channels must be a list of one or more whole numbers, .* not ()"),
    ({"channels": 32}, "channels must be a list of one or more whole numbers, .* not 32"),
    ({"channels": (8, 0)}, "each of channels must be a whole number, 1 or more, not 0"),
    ({"latent_dim": 2.5}, "latent_dim must be a whole number, 1 or more, not 2.5"),
    ({"seed": None}, "seed must be a whole number, 0 or more, not None"),
    ({"dtype": "float16"}, "dtype must be float32 or float64, not float16"),
])
def test_settings_that_do_not_fit_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        VAE(**settings)


def test_numbers_of_numpy_are_settings_that_a_checkpoint_can_hold():
    model = VAE(np.int64(16), np.array([4, 6]), np.uint8(5), centred=np.True_)
    assert json.loads(json.dumps(model.settings)) == VAE(**SMALL).settings


@pytest.mark.parametrize("number", [-1, math.nan, math.inf, "1", None])
def test_a_temperature_or_a_beta_that_is_no_number_is_refused(number, rng):
    model = VAE(**SMALL)
    with pytest.raises(InputError, match=f"temperature must be 0 or more, not {number!r}"):
        model.sample(2, rng, number)
    with pytest.raises(InputError, match=f"beta must be 0 or more, not {number!r}"):
        model.loss_and_gradient(*batch(rng, model), Bernoulli(), number)


def test_codes_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="expected codes of finite numbers"):
        VAE(**SMALL).decode(np.full((2, 5), np.nan, np.float32))


@pytest.mark.parametrize(("count", "rng", "complaint"), [
    (4, 0, "rng must be a NumPy generator, .* not 0"), (4, np.random.RandomState(0), "rng must be .* not RandomState"),
    (-1, np.random.default_rng(0), "count must be a whole number, 0 or more, not -1")])
def test_samples_need_a_number_and_a_generator(count, rng, complaint):
    with pytest.raises(InputError, match=complaint):
        VAE(**SMALL).sample(count, rng)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_and_learns_as_the_original_does_and_shares_nothing_with_it(copied, rng):
    original = VAE(**SMALL, seed=1)
    x, eps = batch(rng, original)
    faces = original.encode(to_cpu(x))[0]  # which leaves caches and threads behind
    original.prior = GaussianPrior.fit(faces, faces, rng)
    twin, before = copied(original), to_cpu(original.values).copy()
    for model in (twin, original):  # in turn: what they shared would be learned twice
        adam = Adam(model.values, model.grads)
        for _ in range(3):
            model.loss_and_gradient(x, eps, Bernoulli())
            adam.update(1e-2)
        if model is twin:
            np.testing.assert_array_equal(to_cpu(original.values), before)
    np.testing.assert_array_equal(to_cpu(twin.values), to_cpu(original.values))
    assert not np.array_equal(to_cpu(twin.values), before)
    new = [model.sample(2, np.random.default_rng(0)) for model in (twin, original)]
    np.testing.assert_array_equal(*new)
    assert (twin.settings, twin.dtype) == (original.settings, original.dtype)
    assert twin.settings is not original.settings and twin.prior is not original.prior


def test_a_training_that_is_copied_goes_on_by_itself(rng):
    images = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    original = Training(VAE(**SMALL), images, Settings(epochs=2, batch_size=4, warmup_steps=1))
    list(original.steps())
    twin = copy.deepcopy(original)
    losses = [[float(loss) for _, _, loss, _ in training.steps()] for training in (twin, original)]
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(to_cpu(twin.model.values), to_cpu(original.model.values))


@pytest.mark.parametrize("way", ["plain"], indirect=True)  # fast layers keep arrays, and replicas for each thread
def test_what_layers_return_depends_on_nothing_that_they_keep(rng):
    model = VAE(**SMALL)
    x, code = to_cpu(batch(rng, model)[0]), rng.standard_normal((3, 5), dtype=np.float32)
    expected = [*model.encode(x), model.decode(code)]
    make_forgetful(layers_of(model))
    for array, right in zip([*model.encode(x), model.decode(code)], expected, strict=True):
        np.testing.assert_array_equal(array, right)


def test_every_one_of_many_threads_gets_its_own_pictures(rng):
    model = VAE(image_size=32, channels=(8, 16), latent_dim=16)
    codes = rng.standard_normal((1, 16), dtype=np.float32)
    model.prior = FlowPrior.fit(np.tile(codes, (20, 1)), np.zeros((20, 16), np.float32), rng, steps=3)

    def ask(number):
        draw = np.random.default_rng(number % 8)
        count = [1, 3, 1, 40][number % 4]  # one part of a batch, or several
        x = draw.random((count, 32, 32, 3), dtype=np.float32)
        return [*model.encode(x), model.reconstruct(x), model.sample(count, draw)]

    with one_blas_thread(), ThreadPoolExecutor(8) as threads:  # plain code has no other way to hold it
        expected = [ask(number) for number in range(8)]
        for number, found in enumerate(threads.map(ask, range(80))):
            for array, right in zip(found, expected[number % 8], strict=True):
                np.testing.assert_array_equal(array, right, err_msg=f"call {number}")


@pytest.mark.parametrize("likelihood", ["bernoulli", Bernoulli, None])
def test_what_is_no_likelihood_is_refused(likelihood, rng):
    model = VAE(**SMALL)
    with pytest.raises(InputError, match=r"must be one of vae_np.losses, such as Bernoulli\(\), not"):
        model.loss_and_gradient(*batch(rng, model), likelihood)


def test_a_mean_over_no_images_is_refused():
    with pytest.raises(InputError, match="there are no images to take a mean over"):
        VAE(**SMALL).loss_and_gradient(to_device(GOOD[:0]), to_device(np.zeros((0, 5), np.float32)), Bernoulli())


@pytest.mark.skipif(backend.NAME != "cupy", reason="all arrays are the device's")
def test_training_refuses_arrays_of_the_host():
    eps = np.zeros((2, 5), np.float32)
    for x_and_eps in ((GOOD, to_device(eps)), (to_device(GOOD), eps)):
        with pytest.raises(InputError, match=r"as arrays of cupy: use vae_np.backend.to_device"):
            VAE(**SMALL).forward(*x_and_eps)
