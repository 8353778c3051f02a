"""PSNR, SSIM, the ELBO and the importance-weighted bound, and active units: by their definitions."""

import math

import numpy as np
import pytest

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device
from vae_np.disk.dataset import to_float
from vae_np.errors import InputError
from vae_np.fast import workers as parallel
from vae_np.fast.workers import Workers
from vae_np.layers import Dense, Reshape, Sequential
from vae_np.losses import (
    LIKELIHOODS,
    Bernoulli,
    CalibratedGaussian,
    Gaussian,
    kl_divergence,
    kl_per_dimension,
    sigmoid,
    softplus,
)
from vae_np.study import metrics
from vae_np.study.metrics import (
    active_units,
    evaluate,
    importance_weighted_bound,
    ledger,
    ledger_table,
    log_importance_weights,
    log_mean_exp,
    psnr,
    sigma_of_weight,
    smooth,
    ssim,
)


def test_psnr_by_hand():
    x = np.zeros((3, 4, 4, 3), np.float32)
    y = x + np.array([0.1, 0.01, 0], np.float32)[:, None, None, None]
    np.testing.assert_allclose(psnr(x, y)[:2], [20, 40], rtol=1e-5)
    assert psnr(x, y)[2] == np.inf


def test_ssim_of_equal_images_is_one_and_of_others_is_less(rng):
    x = rng.random((2, 20, 16, 3))
    np.testing.assert_allclose(ssim(x, x), 1)
    noisier = [ssim(x, np.clip(x + s * rng.standard_normal(x.shape), 0, 1)).mean() for s in (0.02, 0.1, 0.5)]
    assert 1 > noisier[0] > noisier[1] > noisier[2]


def test_ssim_of_constant_images_is_the_luminance_term():
    x, y = np.full((1, 12, 12, 3), 0.5), np.full((1, 12, 12, 3), 0.7)
    np.testing.assert_allclose(ssim(x, y), (2 * 0.35 + 1e-4) / (0.25 + 0.49 + 1e-4))


def test_ssim_by_the_definition_in_loops(rng):
    x, y = rng.random((1, 13, 12, 1)), rng.random((1, 13, 12, 1))
    w = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w = np.outer(w, w) / w.sum() ** 2
    values = []
    for i in range(3):
        for j in range(2):
            a, b = x[0, i : i + 11, j : j + 11, 0], y[0, i : i + 11, j : j + 11, 0]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * cab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    np.testing.assert_allclose(ssim(x, y), np.mean(values), rtol=1e-9)


def test_smooth_takes_the_weighted_mean(rng):
    x = rng.random((1, 5, 6, 2))
    w = np.array([0.2, 0.5, 0.3])
    expected = (np.outer(w, w)[:, :, None] * x[0, 1:4, 2:5]).sum(axis=(0, 1))
    np.testing.assert_allclose(smooth(x, w)[0, 1, 2], expected)
    assert smooth(x, w).shape == (1, 3, 4, 2)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2)])
@pytest.mark.parametrize("shard", [3, 16])
def test_evaluate_equals_the_definition_whatever_the_shards(likelihood, shard, rng, monkeypatch):
    monkeypatch.setattr(parallel, "SHARD_SIZE", shard)
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5)
    images = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    x = to_float(images)
    eps = np.random.default_rng(4).standard_normal((10, 5), dtype=np.float32)
    logits, mu, log_var = model.forward(to_device(x), to_device(eps))
    got = evaluate(Workers(model, 2), images, likelihood, seed=4)
    assert got["recon"] == pytest.approx(float(likelihood(logits, to_device(x))[0]), rel=1e-5)
    assert got["kl"] == pytest.approx(float(kl_divergence(mu, log_var)[0]), rel=1e-5)
    assert got["psnr"] == pytest.approx(float(psnr(x, model.reconstruct(x)).mean()), rel=1e-5)
    means = to_cpu(sigmoid(logits))
    assert got["squared_error"] == pytest.approx(np.square(means - x).sum() / 10, rel=1e-5)
    assert got["floor"] == pytest.approx(to_cpu(likelihood.floor(to_device(x))).mean(), rel=1e-5)
    np.testing.assert_allclose(got["kl_per_dimension"], to_cpu(kl_per_dimension(mu, log_var)), rtol=1e-4)
    assert got["active_units"] == active_units(to_cpu(mu)).sum()
    assert all(type(got[name]) is float for name in ("recon", "kl", "squared_error", "floor", "psnr"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihood_is_minus_recon_of_each_image(name, dtype, rng):
    likelihood, tolerance = LIKELIHOODS[name](), {"float32": 1e-5, "float64": 1e-12}[dtype]
    logits, x = (3 * rng.standard_normal((4, 6, 5, 3))).astype(dtype), rng.random((4, 6, 5, 3)).astype(dtype)
    for array in (logits, x):
        array.flags.writeable = False
    logits, x = to_device(logits), to_device(x)
    log_p = to_cpu(likelihood.log_likelihood(logits, x))
    one_by_one = [-float(likelihood(logits[n : n + 1], x[n : n + 1])[0]) for n in range(4)]
    np.testing.assert_allclose(log_p, one_by_one, rtol=tolerance)
    assert float(likelihood(logits, x)[0]) == pytest.approx(-log_p.sum() / 4, rel=tolerance)
    # One image and many codes: the image is not repeated for it.
    one_image = [-float(likelihood(logits[n : n + 1], x[:1])[0]) for n in range(4)]
    np.testing.assert_allclose(to_cpu(likelihood.log_likelihood(logits, x[:1])), one_image, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihood_of_extreme_logits_is_finite(name, dtype):
    logits = np.array([-1e4, -100, -40, 0, 40, 100, 1e4], dtype)
    for target in (0.0, 0.25, 1.0):
        x = np.full((1, 1, 1, 1), target, dtype)
        log_p = to_cpu(LIKELIHOODS[name]().log_likelihood(to_device(logits.reshape(7, 1, 1, 1)), to_device(x)))
        assert np.isfinite(log_p).all()
        if name == "bernoulli":
            expected = [-1e4 * target, -100 * target, -40 * target, -math.log(2), 40 * (target - 1),
                        100 * (target - 1), 1e4 * (target - 1)]  # fmt: skip
            np.testing.assert_allclose(log_p, expected, rtol=1e-6, atol=1e-16)


def test_softplus_is_exact_up_to_the_rounding_of_one():
    logits = np.array([-800, -50, -1, 0, 2, 50, 800])
    expected = [0, math.exp(-50), math.log1p(math.exp(-1)), math.log(2), math.log(1 + math.exp(2)), 50, 800]
    np.testing.assert_allclose(to_cpu(softplus(to_device(logits))), expected, rtol=1e-14, atol=3e-16)


def test_log_mean_exp_neither_underflows_nor_overflows():
    for offset in (-1e5, 0, 1e5):
        assert log_mean_exp(offset + np.log([1.0, 2.0, 6.0])) == pytest.approx(offset + math.log(3), abs=1e-9)
    assert log_mean_exp(np.array([-1e5])) == -1e5
    assert log_mean_exp(np.array([-3e5, -1e5])) == pytest.approx(-1e5 - math.log(2), abs=1e-9)
    assert type(log_mean_exp(np.array([-1e5]))) is float


class LinearGaussian:
    """x = z W + b + sigma * noise with z from N(0, I): a decoder for which log p(x) and the posterior are known.

    W (Z, D) has orthogonal rows, so that the posterior is N(mu, diag(var)): var = 1 / (1 + |w|^2 / sigma^2) for each
    row w, and mu = var * w (x - b) / sigma^2. It is its own likelihood.
    """

    def __init__(self, rng, shape=(2, 3, 3), latents=3, sigma=0.5):
        size = math.prod(shape)
        dense = Dense(latents, size, rng, dtype="float64")
        directions, _ = np.linalg.qr(rng.standard_normal((size, latents)))
        self.w, self.b, self.sigma = np.array([[2.0], [1.0], [0.3]]) * directions.T, rng.standard_normal(size), sigma
        dense.weight.value[...], dense.bias.value[...] = to_device(self.w), to_device(self.b)
        self.decoder = Sequential(dense, Reshape(*shape))
        noise = sigma * rng.standard_normal(size)
        self.x = (rng.standard_normal(latents) @ self.w + self.b + noise).reshape(shape)
        self.var = 1 / (1 + np.square(self.w).sum(axis=1) / sigma**2)
        self.mu = self.var * (self.w @ (self.x.ravel() - self.b)) / sigma**2

    def log_likelihood(self, mean, x):
        squares = ((x - mean) ** 2).sum(axis=(1, 2, 3))
        return -squares / (2 * self.sigma**2) - x[0].size * math.log(self.sigma * math.sqrt(2 * math.pi))

    def log_p(self):
        """log N(x; b, W^T W + sigma^2 I), which is the exact log p(x)."""
        centred = self.x.ravel() - self.b
        covariance = self.w.T @ self.w + self.sigma**2 * np.eye(len(centred))
        _, log_det = np.linalg.slogdet(2 * math.pi * covariance)
        return -0.5 * (log_det + centred @ np.linalg.solve(covariance, centred))


@pytest.mark.parametrize("k", [1, 4, 7, 200])
def test_where_q_is_the_posterior_every_weight_is_the_likelihood_of_the_image(k, rng, monkeypatch):
    monkeypatch.setattr(metrics, "SHARD_SIZE", 4)
    linear = LinearGaussian(rng)
    eps = rng.standard_normal((k, 3))
    log_w = log_importance_weights(linear.decoder, linear, linear.x, linear.mu, np.log(linear.var), eps)
    np.testing.assert_allclose(log_w, np.full(k, linear.log_p()), rtol=0, atol=1e-10)
    assert log_mean_exp(log_w) == pytest.approx(linear.log_p(), abs=1e-10)


def test_where_q_is_off_the_bound_rises_to_the_log_likelihood_of_the_image(rng):
    linear = LinearGaussian(rng)
    # Moved to the side, and twice as wide: the posterior's deviations are 0.24, 0.45 and 0.86.
    mu, log_var = linear.mu + 0.3, np.log(4 * linear.var)
    log_w = log_importance_weights(linear.decoder, linear, linear.x, mu, log_var, rng.standard_normal((100_000, 3)))
    bounds = np.array([[log_mean_exp(log_w[i * k : i * k + k]) for i in range(2000)] for k in (1, 5, 50)])
    gaps, errors = linear.log_p() - bounds.mean(axis=1), bounds.std(axis=1) / math.sqrt(2000)
    assert (gaps > 4 * errors).all()  # below, by more than chance
    assert (gaps[:-1] - gaps[1:] > 4 * (errors[:-1] + errors[1:])).all()  # and each closer than the one before
    # The gap of one code is KL(q || posterior): a variance 4 times the posterior's, and a mean that is off by 0.3.
    kl = 0.5 * (4 - 1 - math.log(4) + 0.3**2 / linear.var).sum()
    assert linear.log_p() - log_w.mean() == pytest.approx(kl, abs=4 * log_w.std() / math.sqrt(len(log_w)))
    # The mean of 100,000 weights has a standard error of 0.6%, and so its logarithm one of 0.006 nats.
    assert log_mean_exp(log_w) == pytest.approx(linear.log_p(), abs=0.03)


@pytest.fixture
def small(rng):
    """A model whose q is not the posterior, since nobody has trained it, and images.

    Its q depends much on the image and its decoder little on the code, so that the KL is not lost in recon's noise.
    """
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5)
    model.encoder.parameters[-2].value *= 3
    model.encoder.parameters[-1].value[5:] = -0.5
    model.decoder.parameters[-2].value *= 0.1
    return model, rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)


def test_the_bound_with_one_code_is_the_elbo_on_average(small):
    (model, images), likelihood = small, Bernoulli()
    workers = Workers(model, 2)
    count = 200 if backend.NAME == "numpy" else 70  # the stand-in for CuPy takes long for each
    bounds = [importance_weighted_bound(workers, images, likelihood, 1, seed=seed) for seed in range(count)]
    terms = [evaluate(workers, images, likelihood, seed=seed) for seed in range(1000, 1000 + count)]
    elbos = [-term["recon"] - term["kl"] for term in terms]
    # Each with noise of its own, so they are equal within the error of the two means; per seed they are not.
    error = math.hypot(np.std(bounds), np.std(elbos)) / math.sqrt(count)
    assert np.mean(bounds) == pytest.approx(np.mean(elbos), abs=4 * error)
    assert 4 * error < 0.2 * terms[0]["kl"], "the test would not notice a KL that is wrong by a fifth"


def test_the_bound_rises_with_k(small):
    model, images = small
    workers = Workers(model, 2)
    bounds = np.array([[importance_weighted_bound(workers, images, Bernoulli(), k, seed=seed) for seed in range(12)]
                       for k in (1, 5, 50)])  # fmt: skip
    error = bounds.std(axis=1, ddof=1) / math.sqrt(12)
    mean = bounds.mean(axis=1)
    assert mean[1] - mean[0] > 4 * math.hypot(error[0], error[1])
    assert mean[2] - mean[1] > 4 * math.hypot(error[1], error[2])


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2)])
def test_the_bound_equals_the_definition_whatever_the_threads_and_shards(likelihood, small, monkeypatch):
    model, images = small
    expected = []
    for i, x in enumerate(to_float(images)):
        mu, log_var = (a[0].astype(np.float64) for a in model.encode(x[None]))
        weights = []
        for eps in np.random.default_rng([4, i]).standard_normal((9, 5), dtype=np.float32):
            z = mu + np.exp(log_var / 2) * eps
            recon, _ = likelihood(model.decoder.forward(to_device(z[None].astype(np.float32))), to_device(x[None]))
            log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum()
            log_q = -0.5 * ((z - mu) ** 2 / np.exp(log_var) + log_var + math.log(2 * math.pi)).sum()
            weights.append(-float(recon) + log_prior - log_q)
        expected.append(max(weights) + math.log(sum(math.exp(w - max(weights)) for w in weights) / 9))
    got = set()
    for threads, shard in [(1, 16), (2, 16), (3, 2), (2, 1)]:
        monkeypatch.setattr(parallel, "SHARD_SIZE", shard)
        got.add(importance_weighted_bound(Workers(model, threads), images, likelihood, 9, seed=4))
    assert len(got) == 1, "the same bits whatever the threads and shards"
    assert got.pop() == pytest.approx(np.mean(expected), rel=1e-6)
    assert importance_weighted_bound(Workers(model), images, likelihood, 9, seed=5) != pytest.approx(np.mean(expected))


def test_the_bound_of_a_very_sharp_likelihood_is_finite(small):
    model, images = small
    bound = importance_weighted_bound(Workers(model, 2), images, Gaussian(0.01), 20)
    assert type(bound) is float
    assert -1e8 < bound < -1e5


@pytest.mark.parametrize("k", [0, -3])
def test_the_bound_needs_a_code(k, small):
    model, images = small
    with pytest.raises(InputError, match=f"must be at least 1, not {k}"):
        importance_weighted_bound(Workers(model, 1), images, Bernoulli(), k)


def test_a_mean_over_no_images_is_refused(small):
    model, images = small
    for measure in (evaluate, lambda *args: importance_weighted_bound(*args, k=2)):
        with pytest.raises(InputError, match="there are no images"):
            measure(model.workers, images[:0], Bernoulli())


@pytest.mark.parametrize("likelihood", [Gaussian(0.07), CalibratedGaussian(0.3)])
def test_the_ledger_of_a_gaussian_gives_its_sigma_back(likelihood, rng):
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5)
    images = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    rows = ledger(evaluate(Workers(model, 2), images, likelihood), likelihood, 0.5, 16, 5)
    assert rows["sigma"] == pytest.approx(likelihood.sigma, rel=1e-3)
    assert rows["weight_of_sum"] == pytest.approx(2 * likelihood.sigma**2 * 0.5, rel=1e-3)
    assert rows["weight_of_mean"] == pytest.approx(rows["weight_of_sum"] / 768)
    assert rows["weight_of_means"] == pytest.approx(rows["weight_of_mean"] * 5)
    assert "weight_of_mean_entropy" not in rows
    assert sigma_of_weight(rows["weight_of_mean"] / 0.5, 16) == pytest.approx(likelihood.sigma, rel=1e-3)


def test_the_ledger_by_hand():
    terms = {"recon": 700.0, "kl": 20.0, "squared_error": 7.68, "floor": 684.64}
    rows = ledger(terms, Bernoulli(), 2.0, 16, 5)  # 768 pixel channels, a mean squared error of 0.01
    assert rows["bits_recon"] == pytest.approx(700 / 768 / 0.6931472)
    assert rows["bits_kl"] == pytest.approx(20 / 768 / 0.6931472)
    assert rows["bits_floor"] == pytest.approx(684.64 / 768 / 0.6931472)
    assert rows["rmse"] == pytest.approx(0.1)
    assert rows["sigma"] == pytest.approx(0.5)  # 7.68 / (2 * 0.25) is 15.36, what the errors cost
    assert rows["weight_of_sum"] == pytest.approx(1.0)
    assert rows["weight_of_mean_entropy"] == pytest.approx(2 / 768)
    assert ledger(terms, Gaussian(0.5), 2.0, 16, 5)["bits_recon"] == pytest.approx(rows["bits_recon"] + math.log2(255))
    table = ledger_table(terms, Bernoulli(), 2.0, 16, 5).splitlines()
    assert table[4].split() == ["negative", "ELBO", "720.0", f"{720 / 768 / 0.6931472:.4f}"]
    assert table[-2].split()[-1] == "0.002604"
    assert rows["beta_norm"] == pytest.approx(2 * 5 / 768)
    assert table[-1].startswith("and 0.01302 is beta_norm")
    perfect = ledger({**terms, "floor": 700.0}, Bernoulli(), 2.0, 16, 5)
    assert math.isnan(perfect["sigma"]), "there is no error to charge for"


def test_losses_of_the_weights_in_the_ledger_are_the_loss_times_a_constant(rng):
    """What the ledger claims about other conventions, by computing their losses of two models."""
    likelihood, beta, images = Gaussian(0.2), 0.7, rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    ours, sums, means = [], [], []
    for seed in (0, 1):
        terms = evaluate(Workers(VAE(16, (4, 6), 5, seed=seed), 1), images, likelihood)
        rows = ledger(terms, likelihood, beta, 16, 5)
        ours.append(terms["recon"] + beta * terms["kl"])
        sums.append(terms["squared_error"] + rows["weight_of_sum"] * terms["kl"])
        means.append(terms["squared_error"] / 768 + rows["weight_of_means"] * terms["kl"] / 5)
    assert sums[1] - sums[0] == pytest.approx(2 * 0.2**2 * (ours[1] - ours[0]), rel=1e-2)
    assert means[1] - means[0] == pytest.approx(2 * 0.2**2 / 768 * (ours[1] - ours[0]), rel=1e-2)


def test_active_units(rng):
    mu = rng.standard_normal((5000, 3)) * [1, 0.09, 0.11] + [0, 7, 0]
    np.testing.assert_array_equal(active_units(mu), [True, False, True])
