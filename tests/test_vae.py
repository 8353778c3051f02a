"""The whole model: gradients of the whole ELBO, one draw of noise, shapes, dtypes, and what it refuses."""

import itertools
import math

import numpy as np
import pytest
from chance import assert_like_draws, assert_uncorrelated

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import InputError
from vae_np.fast.workers import Workers
from vae_np.gradcheck import check_direction
from vae_np.layers import Dense
from vae_np.losses import LIKELIHOODS, Bernoulli, CalibratedGaussian, kl_divergence, squared_error
from vae_np.study.priors import Gaussian

SMALL = {"image_size": 16, "channels": (4, 6), "latent_dim": 5}


def batch(rng, model, count=3):
    size = model.image_size
    x = rng.random((count, size, size, 3), dtype=model.dtype)
    return to_device(x), to_device(rng.standard_normal((count, model.latent_dim), dtype=model.dtype))


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradient_of_the_whole_elbo(name, beta, rng):
    model = VAE(**SMALL, dtype="float64")
    x, eps = batch(rng, model)
    likelihood = LIKELIHOODS[name]()

    def loss():
        logits, mu, log_var = model.forward(x, eps)
        if isinstance(likelihood, CalibratedGaussian):
            likelihood.calibrate(squared_error(logits, x), x.size)
        return likelihood(logits, x)[0] + beta * kl_divergence(mu, log_var)[0]

    loss()
    recon, kl = model.loss_and_gradient(x, eps, likelihood, beta)
    assert math.isclose(float(recon + beta * kl), float(loss()), rel_tol=1e-12)
    gradient = model.grads.copy()
    for _ in range(3):
        assert check_direction(loss, model.values, gradient, rng) < 1e-6
    for parameter in model.parameters:  # and each alone, so that a small one cannot hide behind a large one
        loss()
        error = check_direction(loss, parameter.value, parameter_part(model, parameter, gradient), rng)
        assert error < 1e-6, parameter


def parameter_part(model, parameter, gradient):
    start = 0
    for other in model.parameters:
        if other is parameter:
            return gradient[start : start + other.value.size].reshape(other.value.shape)
        start += other.value.size
    raise AssertionError("no such parameter")


def recorded_codes(model, monkeypatch):
    """The codes that reach the decoder from now on, a NumPy array for each call."""
    codes, decode = [], model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda z: codes.append(to_cpu(z)) or decode(z))
    return codes


def test_z_has_the_mean_and_variance_that_the_encoder_says(rng, monkeypatch):
    mu, log_var = np.array([1.5, -2.0, 0.0, 3.0, 0.5]), np.log([4.0, 0.25, 1.0, 0.01, 9.0])
    model = VAE(**SMALL)
    dense = model.encoder.layers[-1]
    dense.weight.value[...] = 0
    dense.bias.value[...] = to_device(np.concatenate([mu, log_var]).astype(np.float32))
    codes = recorded_codes(model, monkeypatch)
    x, eps = batch(rng, model, count=2000)
    model.forward(x, eps)
    # A log variance of ln 4 is a deviation of 2.
    np.testing.assert_allclose(codes[0], mu + np.array([2, 0.5, 1, 0.1, 3]) * to_cpu(eps), rtol=1e-5, atol=1e-5)
    assert_like_draws(codes[0], mu, np.exp(log_var))


def test_forward_and_backward_draw_no_noise_of_their_own(rng, monkeypatch):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)

    def forbidden(*args, **kwargs):
        raise AssertionError("noise was drawn")

    monkeypatch.setattr(np.random, "default_rng", forbidden)
    monkeypatch.setattr(np.random, "standard_normal", forbidden)
    model.loss_and_gradient(x, eps, Bernoulli())
    first = to_cpu(model.grads).copy()
    model.loss_and_gradient(x, eps, Bernoulli())
    np.testing.assert_array_equal(to_cpu(model.grads), first)
    model.loss_and_gradient(x, -eps, Bernoulli())
    assert not np.array_equal(to_cpu(model.grads), first), "the noise that is given must matter"


def test_everything_stays_float32(rng):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    outputs = [*model.forward(x, eps), *model.loss_and_gradient(x, eps, Bernoulli()), model.values, model.grads]
    outputs += [*model.encode(to_cpu(x)), model.decode(to_cpu(eps)), model.sample(2, rng), model.reconstruct(to_cpu(x))]
    outputs += [array for parameter in model.parameters for array in (parameter.value, parameter.grad)]
    assert {array.dtype for array in outputs} == {np.dtype("float32")}


@pytest.mark.parametrize("beta", [np.float64(0.5), np.full(5, 0.5)], ids=["a number", "one for each latent"])
def test_a_beta_of_numpys_float64_does_not_make_gradients_float64(rng, monkeypatch, beta):
    model, seen = VAE(**SMALL), []
    x, eps = batch(rng, model)
    backward = model.backward
    monkeypatch.setattr(model, "backward", lambda *gradients: seen.extend(gradients) or backward(*gradients))
    model.loss_and_gradient(x, eps, Bernoulli(), beta=beta if np.ndim(beta) == 0 else to_device(beta))
    assert {gradient.dtype for gradient in seen} == {np.dtype("float32")}


def test_encoding_and_decoding_give_the_same_bits_on_any_number_of_threads(rng):
    model, x = VAE(**SMALL), rng.random((70, 16, 16, 3), dtype=np.float32)
    pictures = []
    for threads in (1, 2, 3):
        model.workers = Workers(model, threads)
        pictures.append(model.reconstruct(x))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_inputs_are_left_alone(rng):
    model = VAE(**SMALL)
    x, eps = (to_cpu(array) for array in batch(rng, model))
    x.flags.writeable = eps.flags.writeable = False
    model.loss_and_gradient(to_device(x), to_device(eps), Bernoulli())
    model.reconstruct(x)
    model.decode(eps)


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_image_sizes(size, rng):
    model = VAE(image_size=size, channels=(4, 6, 8, 10), latent_dim=7)
    x, eps = batch(rng, model, count=2)
    logits, mu, log_var = model.forward(x, eps)
    assert (logits.shape, mu.shape, log_var.shape) == ((2, size, size, 3), (2, 7), (2, 7))
    model.loss_and_gradient(x, eps, Bernoulli())
    assert np.isfinite(to_cpu(model.grads)).all()
    assert model.reconstruct(to_cpu(x)).shape == (2, size, size, 3)


def test_the_default_model_is_the_reference_model():
    model = VAE()
    assert model.values.size == 2_957_251
    shapes = [layer.weight.value.shape for layer in (*model.encoder.layers, *model.decoder.layers) if layer.parameters]
    assert shapes == [(4, 4, 3, 32), (4, 4, 32, 64), (4, 4, 64, 128), (4, 4, 128, 256), (4096, 256),
                      (128, 4096), (4, 4, 128, 256), (4, 4, 64, 128), (4, 4, 32, 64), (4, 4, 3, 32)]  # fmt: skip
    assert repr(model) == ("VAE(image_size=64, channels=(32, 64, 128, 256), latent_dim=128): 2,957,251 parameters")


def test_the_initial_weights_of_every_layer_are_like_draws_of_its_variance():
    # How many products an output pixel sums, counted by hand: a 4x4 kernel meets 16 pixels of every channel, but at
    # stride 2 the transposed one meets an output pixel from 4 pixels only.
    def products(layer, shape):
        return shape[0] if isinstance(layer, Dense) else 16 * shape[2] if isinstance(layer, Conv2d) else 4 * shape[3]

    model, draws = VAE(), []
    for network in (model.encoder, model.decoder):
        layers = [layer for layer in network.layers if layer.parameters]
        for layer in layers:
            weight, bias = (to_cpu(parameter.value) for parameter in layer.parameters)
            gain2 = 1 if layer is layers[-1] else 2 / (1 + 0.2**2)  # no activation behind the last, LeakyReLU(0.2) else
            assert_like_draws(weight.reshape(-1, 1), 0, gain2 / products(layer, weight.shape))
            assert not bias.any()
            draws.append(weight.ravel())
    assert len(draws) == 10
    for i, j in itertools.combinations(range(10), 2):
        shared = min(len(draws[i]), len(draws[j]))
        assert_uncorrelated(draws[i][:shared], draws[j][:shared])


def test_activations_keep_their_scale_through_the_whole_model(rng):
    model = VAE()
    for network, shape in ((model.encoder, (8, 64, 64, 3)), (model.decoder, (8, 128))):
        h = to_device(rng.standard_normal(shape, dtype=np.float32))
        for layer in network.layers:
            h = layer.forward(h)
            if not isinstance(layer, (Conv2d, ConvTranspose2d, Dense)) or layer is network.layers[-1]:
                inner = to_cpu(h)[:, 2:-2, 2:-2] if h.ndim == 4 and h.shape[1] > 8 else to_cpu(h)
                # The zeros of the padding take some away, most of it where images are 4x4: 0.75 to 1.1 over many seeds.
                assert 0.65 < np.sqrt(np.mean(inner**2)) < 1.3, layer


def test_the_seed_decides_the_weights():
    values = [to_cpu(VAE(**SMALL, seed=seed).values) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_encode_decode_reconstruct_sample_agree_with_forward(rng):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    logits, mu, log_var = (to_cpu(array).copy() for array in model.forward(x, eps))
    for got, expected in zip(model.encode(to_cpu(x)), (mu, log_var), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    z = mu + np.exp(log_var / 2) * to_cpu(eps)
    np.testing.assert_allclose(model.decode(z), 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.reconstruct(to_cpu(x)), model.decode(mu), rtol=1e-5, atol=1e-6)
    codes = np.random.default_rng(5).standard_normal((4, 5), dtype=np.float32)
    np.testing.assert_array_equal(model.sample(4, np.random.default_rng(5)), model.decode(codes))
    np.testing.assert_array_equal(model.sample(4, np.random.default_rng(5), temperature=0.5), model.decode(codes / 2))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_are_decoded_from_codes_like_the_prior_and_new_ones_every_time(temperature, monkeypatch):
    model, rng, count = VAE(**SMALL), np.random.default_rng(7), 2000
    decoded, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda z: decoded.append(z) or decode(z))

    def draw(generator):
        model.sample(count, generator, temperature)
        return decoded.pop()

    first, second, again = draw(rng), draw(rng), draw(np.random.default_rng(7))
    assert first.shape == (count, 5)
    assert_like_draws(first, 0, temperature**2)
    assert_like_draws(second, 0, temperature**2)
    for i, j in itertools.combinations(range(5), 2):
        assert_uncorrelated(first[:, i], first[:, j])
    assert_uncorrelated(first, second)
    np.testing.assert_array_equal(first, again)


def test_samples_are_decoded_from_codes_of_the_prior_that_the_model_has(rng):
    model = VAE(**SMALL)
    model.prior = Gaussian(np.arange(5), np.diag([4.0, 1, 1, 0.25, 1]))
    for temperature in (1.0, 0.5):
        codes = model.prior.sample(6, np.random.default_rng(5), temperature)
        np.testing.assert_array_equal(model.sample(6, np.random.default_rng(5), temperature), model.decode(codes))
    assert VAE(**SMALL, dtype="float64").sample(2, rng).dtype == np.float64


def test_long_inputs_go_through_in_shards_and_come_out_the_same(rng):
    model = VAE(**SMALL)
    x = rng.random((150, 16, 16, 3), dtype=np.float32)
    mu = model.encode(x)[0]
    np.testing.assert_allclose(mu[100:103], model.encode(x[100:103])[0], rtol=1e-5, atol=1e-6)
    images = model.decode(mu)
    assert images.shape == (150, 16, 16, 3)
    assert 0 <= images.min() < images.max() <= 1


def test_no_images_give_no_codes_and_no_images():
    model = VAE(**SMALL)
    mu, log_var = model.encode(GOOD[:0])
    assert mu.shape == log_var.shape == (0, 5)
    assert model.decode(mu).shape == model.sample(0, np.random.default_rng(0)).shape == (0, 16, 16, 3)


def test_results_do_not_change_when_the_model_is_used_again(rng):
    model = VAE(**SMALL)
    x, eps = batch(rng, model)
    results = [*model.encode(to_cpu(x)), model.decode(to_cpu(eps)), *map(to_cpu, model.forward(x, eps))]
    kept = [result.copy() for result in results]
    model.reconstruct(rng.random((3, 16, 16, 3), dtype=np.float32))
    for result, before in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result, before)


def test_a_replica_shares_parameters_and_has_its_own_gradients(rng):
    model = VAE(**SMALL)
    replica = model.replica()
    x, eps = batch(rng, model)
    model.loss_and_gradient(x, eps, Bernoulli())
    expected = to_cpu(model.grads).copy()
    replica.loss_and_gradient(x, eps, Bernoulli())
    np.testing.assert_array_equal(to_cpu(replica.grads), expected)
    replica.loss_and_gradient(x, -eps, Bernoulli())
    np.testing.assert_array_equal(to_cpu(model.grads), expected)
    model.values += 1
    np.testing.assert_array_equal(to_cpu(replica.parameters[-1].value), to_cpu(model.parameters[-1].value))


GOOD = np.full((2, 16, 16, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        ((GOOD * 255).astype(np.uint8), "got uint8"),
        (GOOD.astype(np.float64), "got float64"),
        (GOOD * 2 - 2, "got values from -1 to -1"),
        (GOOD * 255, "got values from 127.5 to 127.5"),
        (GOOD.transpose(0, 3, 1, 2), r"got shape \(2, 3, 16, 16\)"),
        (GOOD[0], r"got shape \(16, 16, 3\)"),
        (GOOD[:, ::2, ::2], r"got shape \(2, 8, 8, 3\)"),
        (GOOD * np.nan, "got values from nan to nan"),
        ([[0.5]], "got list"),
    ],
)
def test_images_of_any_other_kind_are_refused(x, complaint):
    model = VAE(**SMALL)
    expected = r"expected images as a float32 array \(N, 16, 16, 3\) with values in \[0, 1\], "
    with pytest.raises(InputError, match=expected + complaint):
        model.encode(x)
    with pytest.raises(InputError, match=expected + complaint):
        model.forward(x, np.zeros((2, 5), np.float32))


def test_one_bad_pixel_is_refused():
    for value in (np.nan, np.inf, -0.01, 1.01):
        x = GOOD.copy()
        x[1, 3, 4, 2] = value
        with pytest.raises(InputError, match=r"values in \[0, 1\]"):
            VAE(**SMALL).encode(x)


@pytest.mark.parametrize(
    ("eps", "complaint"),
    [
        (np.zeros((2, 5)), "noise as a float32 array, got float64"),
        (np.zeros((3, 5), np.float32), r"noise of shape \(2, 5\), got shape \(3, 5\)"),
        (np.zeros((2, 4), np.float32), r"noise of shape \(2, 5\), got shape \(2, 4\)"),
        (0.0, "got float"),
    ],
)
def test_noise_of_any_other_kind_is_refused(eps, complaint):
    with pytest.raises(InputError, match=complaint):
        VAE(**SMALL).forward(to_device(GOOD), eps)


def test_codes_of_any_other_kind_are_refused():
    with pytest.raises(InputError, match=r"codes of shape \(N, 5\), got shape \(2, 4\)"):
        VAE(**SMALL).decode(np.zeros((2, 4), np.float32))
    with pytest.raises(InputError, match="codes as a float32 array, got float64"):
        VAE(**SMALL).decode(np.zeros((2, 5)))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"image_size": 60}, "divisible by 16, since 4 layers halve it; 60 is not, 64 is"),
        ({"image_size": 8}, "8 is not, 16 is"),
        ({"image_size": 0}, "0 is not, 16 is"),
        ({"channels": ()}, "channels must be"),
        ({"channels": (8, 0)}, "channels must be"),
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        VAE(**settings)


def test_a_mean_over_no_images_is_refused():
    model = VAE(16, (4, 8), 5)
    with pytest.raises(InputError, match="there are no images to take a mean over"):
        model.loss_and_gradient(to_device(GOOD[:0]), to_device(np.zeros((0, 5), np.float32)), Bernoulli())


@pytest.mark.skipif(backend.NAME == "numpy", reason="all arrays are the device's")
@pytest.mark.parametrize("move", [lambda x, eps: (x, to_device(eps)), lambda x, eps: (to_device(x), eps)])
def test_training_refuses_arrays_of_the_host(move):
    model = VAE(16, (4, 8), 5)
    with pytest.raises(InputError, match=r"as arrays of cupy: use vae_np.backend.to_device"):
        model.forward(*move(GOOD, np.zeros((2, 5), np.float32)))
