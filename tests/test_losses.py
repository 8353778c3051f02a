"""Likelihoods and the KL divergence: values by the textbook, gradients by finite differences, sums against means."""

import math
from decimal import Decimal

import numpy as np
import pytest

from vae_np.backend import to_cpu, to_device, xp
from vae_np.errors import InputError
from vae_np.gradcheck import numerical_gradient, relative_error
from vae_np.losses import (
    LIKELIHOODS,
    Bernoulli,
    CalibratedGaussian,
    Gaussian,
    free_bits,
    kl_divergence,
    kl_per_dimension,
    likelihood_of,
    sigmoid,
    squared_error,
)

SHAPE = (3, 4, 5, 3)


@pytest.fixture
def batch(rng):
    return to_device(2 * rng.standard_normal(SHAPE)), to_device(rng.random(SHAPE))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.1), Gaussian(0.7)])
def test_gradient_of_a_likelihood(likelihood, batch):
    logits, x = batch
    _, dlogits = likelihood(logits, x)
    assert relative_error(dlogits, numerical_gradient(lambda: likelihood(logits, x)[0], logits)) < 1e-6


def test_gradient_of_the_calibrated_gaussian_where_sigma_moves_with_the_logits(batch):
    logits, x = batch
    likelihood = CalibratedGaussian()

    def loss():
        likelihood.calibrate(squared_error(logits, x), x.size)
        return likelihood(logits, x)[0]

    loss()
    _, dlogits = likelihood(logits, x)
    assert relative_error(dlogits, numerical_gradient(loss, logits)) < 1e-6


def test_bernoulli_is_the_cross_entropy_summed_over_pixels_and_averaged_over_images(batch):
    logits, x = (to_cpu(a) for a in batch)
    p = 1 / (1 + np.exp(-logits))
    images = [-np.sum(x[n] * np.log(p[n]) + (1 - x[n]) * np.log(1 - p[n])) for n in range(3)]
    assert math.isclose(float(Bernoulli()(*batch)[0]), sum(images) / 3, rel_tol=1e-12)


def normal_density(x, mean, sigma):
    """The textbook formula. A Decimal has room for 10^-14000, where a float would underflow to 0."""
    distance = (x - mean) / sigma
    return (-distance * distance / 2).exp() / (sigma * Decimal(2 * math.pi).sqrt())


@pytest.mark.parametrize("sigma", [1 / 255, 0.05, 0.3, 1.0, 2.5])
def test_gaussian_is_the_textbook_density(sigma, batch):
    logits, x = (to_cpu(a).ravel().tolist() for a in batch)
    means = [1 / (1 + Decimal(-logit).exp()) for logit in logits]
    densities = [normal_density(Decimal(v), mean, Decimal(sigma)) for v, mean in zip(x, means, strict=True)]
    expected = -sum(density.ln() for density in densities) / SHAPE[0]
    assert math.isclose(float(Gaussian(sigma)(*batch)[0]), expected, rel_tol=1e-12)


def test_calibrated_sigma_is_the_best_one(batch):
    logits, x = batch
    likelihood = CalibratedGaussian()
    likelihood.calibrate(squared_error(logits, x), x.size)
    best = float(likelihood(logits, x)[0])
    assert math.isclose(likelihood.sigma, np.sqrt(np.mean((to_cpu(x) - to_cpu(sigmoid(logits))) ** 2)), rel_tol=1e-12)
    for factor in (0.98, 1.02):
        assert float(Gaussian(likelihood.sigma * factor)(logits, x)[0]) > best


def test_a_perfect_model_does_not_calibrate_sigma_to_zero():
    likelihood = CalibratedGaussian()
    likelihood.calibrate(0.0, 100)
    assert likelihood.sigma == 1 / 255


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.1)])
def test_extreme_logits_are_stable(likelihood, dtype):
    logits = to_device(np.array([-1e4, -100, -40, 0, 40, 100, 1e4], dtype).reshape(1, 1, 7, 1))
    for target in (0.0, 0.25, 1.0):
        recon, dlogits = likelihood(logits, to_device(np.full((1, 1, 7, 1), target, dtype)))
        assert np.isfinite(float(recon))
        assert np.isfinite(to_cpu(dlogits)).all()
    one = to_device(np.ones((1, 1, 1, 1), dtype))
    assert math.isclose(float(Bernoulli()(-1e4 * one, one)[0]), 1e4, rel_tol=1e-6)
    assert float(Bernoulli()(1e4 * one, one)[0]) == 0


def log_normal_density(z, mean, log_var):
    return -0.5 * (np.log(2 * np.pi) + log_var + (z - mean) ** 2 / np.exp(log_var))


def test_kl_in_closed_form_equals_the_integral():
    mu, log_var = np.array([[0.3, -1.2]]), np.array([[0.5, -2.0]])
    grid = np.linspace(-12, 12, 200_001)
    expected = 0.0
    for m, lv in zip(mu[0], log_var[0], strict=True):
        log_q, log_p = log_normal_density(grid, m, lv), log_normal_density(grid, 0, 0)
        expected += np.sum(np.exp(log_q) * (log_q - log_p)) * (grid[1] - grid[0])
    assert math.isclose(float(kl_divergence(to_device(mu), to_device(log_var))[0]), expected, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("mu", "log_var"),
    [([0.0], [1.0]), ([0.7], [0.0]), ([-2.0], [-3.0]), ([0.3], [2.0]), ([3.0, -0.1, 0.0], [-5.0, 0.4, 0.1])],
)
def test_kl_in_closed_form_equals_the_mean_over_draws(mu, log_var, rng):
    # KL is the mean of log q(z) - log p(z) over draws z from q. A mean of so many is normal to a good approximation: by
    # chance it is off by more than 5 standard errors in one of two million cases.
    mu, log_var = np.array([mu]), np.array([log_var])
    z = mu + np.exp(log_var / 2) * rng.standard_normal((100_000, mu.size))
    terms = (log_normal_density(z, mu, log_var) - log_normal_density(z, 0, 0)).sum(axis=1)
    standard_error = terms.std() / math.sqrt(len(terms))
    kl = float(kl_divergence(to_device(mu), to_device(log_var))[0])
    assert standard_error < 0.02 * kl, "or the comparison would say little"
    assert abs(kl - terms.mean()) < 5 * standard_error


def test_kl_takes_a_log_variance():
    # A standard deviation of 2 is a log variance of ln 4: KL = (4 - 1 - ln 4) / 2.
    zero = to_device(np.zeros((5, 1)))
    kl, _, _ = kl_divergence(zero, zero + math.log(4))
    assert math.isclose(float(kl), (3 - math.log(4)) / 2, rel_tol=1e-12)
    assert float(kl_divergence(zero, zero)[0]) == 0


def test_gradient_of_the_kl(rng):
    mu, log_var = to_device(rng.standard_normal((4, 3))), to_device(rng.standard_normal((4, 3)))
    _, dmu, dlog_var = kl_divergence(mu, log_var)

    def loss():
        return kl_divergence(mu, log_var)[0]

    assert relative_error(dmu, numerical_gradient(loss, mu)) < 1e-6
    assert relative_error(dlog_var, numerical_gradient(loss, log_var)) < 1e-6


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2)])
def test_terms_do_not_grow_with_the_batch_and_do_with_the_image(likelihood, batch):
    logits, x = batch
    recon, dlogits = likelihood(logits, x)
    twice, dtwice = likelihood(xp.concatenate([logits, logits]), xp.concatenate([x, x]))
    assert math.isclose(float(twice), float(recon), rel_tol=1e-12)
    np.testing.assert_allclose(to_cpu(dtwice[:3]), to_cpu(dlogits) / 2, rtol=1e-12)
    tall, _ = likelihood(xp.concatenate([logits, logits], axis=1), xp.concatenate([x, x], axis=1))
    assert math.isclose(float(tall), 2 * float(recon), rel_tol=1e-12)


def test_kl_is_summed_over_latents_and_averaged_over_images(rng):
    mu, log_var = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    kl = float(kl_divergence(to_device(mu), to_device(log_var))[0])
    wide = float(kl_divergence(to_device(np.tile(mu, (1, 2))), to_device(np.tile(log_var, (1, 2))))[0])
    long = float(kl_divergence(to_device(np.tile(mu, (2, 1))), to_device(np.tile(log_var, (2, 1))))[0])
    assert math.isclose(wide, 2 * kl, rel_tol=1e-12)
    assert math.isclose(long, kl, rel_tol=1e-12)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2)])
def test_shards_add_up_to_the_batch(likelihood, batch):
    logits, x = batch
    recon, dlogits = likelihood(logits, x)
    parts = [likelihood(logits[part], x[part], batch_size=3) for part in (slice(0, 2), slice(2, 3))]
    assert math.isclose(float(sum(part[0] for part in parts)), float(recon), rel_tol=1e-12)
    np.testing.assert_allclose(np.concatenate([to_cpu(part[1]) for part in parts]), to_cpu(dlogits), rtol=1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_float32_stays_float32_and_inputs_are_left_alone(name, rng):
    logits, x = rng.standard_normal(SHAPE, dtype=np.float32), rng.random(SHAPE, dtype=np.float32)
    mu = rng.standard_normal((3, 2), dtype=np.float32)
    for array in (logits, x, mu):
        array.flags.writeable = False
    recon, dlogits = LIKELIHOODS[name]()(to_device(logits), to_device(x))
    kl, dmu, dlog_var = kl_divergence(to_device(mu), to_device(mu))
    assert {a.dtype for a in (recon, dlogits, kl, dmu, dlog_var, sigmoid(to_device(x)))} == {np.dtype("float32")}


@pytest.mark.parametrize("sigma", [0, -1, float("nan")])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(InputError, match="must be above 0"):
        Gaussian(sigma)


def test_reprs():
    assert repr(Bernoulli()) == "Bernoulli()"
    assert repr(CalibratedGaussian(0.25)) == "CalibratedGaussian(sigma=0.25)"


def test_kl_per_dimension_sums_to_the_kl(rng):
    mu, log_var = to_device(rng.standard_normal((20, 4))), to_device(rng.standard_normal((20, 4)))
    per_dimension = kl_per_dimension(mu, log_var)
    assert per_dimension.shape == (4,)
    assert math.isclose(float(per_dimension.sum()), float(kl_divergence(mu, log_var)[0]))
    alone = [float(kl_divergence(mu[:, j : j + 1], log_var[:, j : j + 1])[0]) for j in range(4)]
    np.testing.assert_allclose(to_cpu(per_dimension), alone)


def test_free_bits_by_hand():
    kl = to_device(np.array([0.05, 0.1, 0.25, 3.0], np.float32))
    term, weights = free_bits(kl, 0.1)
    assert float(term) == pytest.approx(0.1 + 0.1 + 0.25 + 3)
    np.testing.assert_array_equal(to_cpu(weights), [0, 0, 1, 1])
    assert weights.dtype == kl.dtype


def test_free_bits_have_the_gradient_of_their_term(rng):
    mu, log_var = to_device(rng.standard_normal((6, 4))), to_device(0.5 * rng.standard_normal((6, 4)))
    middle = float(np.sort(to_cpu(kl_per_dimension(mu, log_var)))[1:3].mean())
    _, weights = free_bits(kl_per_dimension(mu, log_var), middle)
    assert to_cpu(weights).sum() == 2
    _, dmu, dlog_var = kl_divergence(mu, log_var)
    for array, gradient in ((mu, dmu * weights), (log_var, dlog_var * weights)):
        numerical = numerical_gradient(lambda: free_bits(kl_per_dimension(mu, log_var), middle)[0], array)
        assert relative_error(gradient, numerical) < 1e-6


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.1), CalibratedGaussian(0.3)])
def test_the_floor_is_recon_where_the_mean_is_the_image(likelihood, rng):
    x = rng.uniform(0.01, 0.99, SHAPE)
    logits = to_device(np.log(x / (1 - x)))
    floor = to_cpu(likelihood.floor(to_device(x)))
    assert floor.shape == (3,)
    assert floor.mean() == pytest.approx(float(likelihood(logits, to_device(x))[0]), rel=1e-12)
    for other in (logits + 0.1, logits - 0.1):
        assert float(likelihood(other, to_device(x))[0]) > floor.mean()


def test_the_floor_of_black_and_white_coins_is_zero():
    x = to_device(np.array([0, 1, 1, 0], np.float32).reshape(1, 2, 2, 1))
    assert float(Bernoulli().floor(x)[0]) == 0


def test_likelihood_of():
    assert repr(likelihood_of("bernoulli")) == "Bernoulli()"
    assert repr(likelihood_of("gaussian", 0.3)) == "Gaussian(sigma=0.3)"
    assert repr(likelihood_of("calibrated")) == "CalibratedGaussian(sigma=0.2)"
    with pytest.raises(InputError, match=r"no likelihood 'laplace'$"):
        likelihood_of("laplace", 0.3)
    with pytest.raises(InputError, match=r"no likelihood 'bernoulli' with sigma 0\.3"):
        likelihood_of("bernoulli", 0.3)
