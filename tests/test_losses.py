"""Likelihoods and the KL divergence: values by the textbook, sums and means, sigma, extremes.

Their gradients are compared with finite differences in the table of gradients.
"""

import math
from decimal import Decimal

import numpy as np
import pytest

from vae_np.backend import to_cpu, to_device
from vae_np.errors import InputError
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
)

SHAPE = (3, 4, 5, 3)
pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture
def batch(rng):
    return to_device(2 * rng.standard_normal(SHAPE)), to_device(rng.random(SHAPE))


def test_bernoulli_is_the_cross_entropy_summed_over_pixels_and_averaged_over_images(batch):
    logits, x = (to_cpu(a) for a in batch)
    p = 1 / (1 + np.exp(-logits))
    recon, dlogits = Bernoulli()(*batch)
    assert math.isclose(float(recon), -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p)) / 3, rel_tol=1e-12)
    np.testing.assert_allclose(to_cpu(dlogits), (p - x) / 3, rtol=1e-12, atol=1e-15)


def normal_density(x, mean, sigma):
    """The textbook formula. A Decimal has room for 10^-14000, where a float would underflow to 0."""
    distance = (x - mean) / sigma
    return (-distance * distance / 2).exp() / (sigma * Decimal(2 * math.pi).sqrt())


@pytest.mark.parametrize("sigma", [1 / 255, 0.3, 2.5])
def test_gaussian_is_the_textbook_density(sigma, batch):
    logits, x = (to_cpu(a).ravel().tolist() for a in batch)
    means = [1 / (1 + Decimal(-logit).exp()) for logit in logits]
    densities = [normal_density(Decimal(v), mean, Decimal(sigma)) for v, mean in zip(x, means, strict=True)]
    expected = -sum(density.ln() for density in densities) / SHAPE[0]
    recon, dlogits = Gaussian(sigma)(*batch)
    assert math.isclose(float(recon), expected, rel_tol=1e-12)
    m, x = np.array(means, float).reshape(SHAPE), to_cpu(batch[1])
    np.testing.assert_allclose(to_cpu(dlogits), (m - x) * m * (1 - m) / (3 * sigma**2), rtol=1e-10)


def test_a_calibrated_gaussian_is_one_of_the_sigma_of_the_moment(batch):
    likelihood = CalibratedGaussian(0.3)
    for one, other in zip(likelihood(*batch), Gaussian(0.3)(*batch), strict=True):
        np.testing.assert_array_equal(to_cpu(one), to_cpu(other))
    assert float(likelihood.sigma) == 0.3, "a shard of a batch must not calibrate for the others"


def test_sigma_squared_is_a_running_mean_of_the_squared_error(batch):
    likelihood, variance = CalibratedGaussian(0.3), 0.3**2
    for count in (3, 1, 2):  # images
        logits, x = (array[:count] for array in batch)
        likelihood.follow(likelihood(logits, x)[0], x)
        variance = 0.9 * variance + 0.1 * float(((x - sigmoid(logits)) ** 2).mean())
        assert float(likelihood.sigma) == pytest.approx(math.sqrt(variance), rel=1e-10)
    for other, before in ((Bernoulli(), "Bernoulli()"), (Gaussian(0.3), "Gaussian(sigma=0.3)")):
        other.follow(other(*batch)[0], batch[1])
        assert repr(other) == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_calibrated_sigma_comes_to_the_best_one(batch, dtype):
    logits, x = (array.astype(dtype) for array in batch)
    likelihood = CalibratedGaussian()
    for _ in range(300):
        likelihood.follow(likelihood(logits, x)[0], x)
    best, sigma = likelihood(logits, x)[0], float(likelihood.sigma)
    error = to_cpu(x) - to_cpu(sigmoid(logits))
    assert math.isclose(sigma, np.sqrt(np.mean(error**2)), rel_tol=1e-5)
    if dtype == "float64":  # float32 would not see it
        for factor in (0.98, 1.02):
            assert float(Gaussian(sigma * factor)(logits, x)[0]) > best


def test_a_perfect_model_does_not_calibrate_sigma_to_zero():
    likelihood, half = CalibratedGaussian(), to_device(np.full(SHAPE, 0.5, np.float32))
    for _ in range(150):
        likelihood.follow(likelihood(0 * half, half)[0], half)
    assert float(likelihood.sigma) == pytest.approx(1 / 255)
    assert np.isfinite(float(likelihood(0 * half, half)[0]))


@pytest.mark.parametrize("make", [Bernoulli, Gaussian])
def test_parts_of_a_batch_add_up_to_the_batch(make, batch):
    logits, x = batch
    likelihood = make()
    recon, dlogits = likelihood(logits, x)
    parts = [(share, likelihood(logits[part], x[part])) for share, part in ((2 / 3, slice(0, 2)), (1 / 3, slice(2, 3)))]
    assert math.isclose(sum(share * float(part[0]) for share, part in parts), float(recon), rel_tol=1e-12)
    np.testing.assert_allclose(
        np.concatenate([share * to_cpu(part[1]) for share, part in parts]), to_cpu(dlogits), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [Bernoulli, Gaussian])
def test_extreme_logits_are_stable(make, dtype):
    logits = to_device(np.array([-1e4, -100, -40, 0, 40, 100, 1e4], dtype).reshape(1, 1, 7, 1))
    for target in (0.0, 0.25, 1.0):
        recon, dlogits = make()(logits, to_device(np.full((1, 1, 7, 1), target, dtype)))
        assert np.isfinite(float(recon))
        assert np.isfinite(to_cpu(dlogits)).all()
    one = to_device(np.ones((1, 1, 1, 1), dtype))
    assert math.isclose(float(Bernoulli()(-1e4 * one, one)[0]), 1e4, rel_tol=1e-6)
    assert float(Bernoulli()(1e4 * one, one)[0]) == 0


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_float32_stays_float32_and_inputs_are_left_alone(name, rng):
    logits, x, mu = (to_device(rng.random(shape, dtype=np.float32)) for shape in (SHAPE, SHAPE, (3, 2)))
    kept = [array.copy() for array in (logits, x, mu)]
    terms = (*LIKELIHOODS[name]()(logits, x), *kl_divergence(mu, mu), sigmoid(x))
    assert {a.dtype for a in terms} == {np.dtype("float32")}
    for array, before in zip((logits, x, mu), kept, strict=True):
        np.testing.assert_array_equal(to_cpu(array), to_cpu(before))


def test_kl_in_closed_form_equals_the_integral():
    mu, log_var = np.array([[0.3, -1.2, 0.0]]), np.array([[0.5, -2.0, math.log(4)]])
    grid = np.linspace(-20, 20, 200_001)
    expected = []
    for m, lv in zip(mu[0], log_var[0], strict=True):
        # Both without -ln(2 pi) / 2.
        log_q, log_p = -0.5 * (lv + (grid - m) ** 2 / np.exp(lv)), -0.5 * grid**2
        q = np.exp(log_q) / math.sqrt(2 * math.pi)
        expected.append(np.sum(q * (log_q - log_p)) * (grid[1] - grid[0]))
    assert expected[2] == pytest.approx((4 - 1 - math.log(4)) / 2), "a log variance of ln 4 is a deviation of 2"
    # Summed over latents, averaged over images.
    mu, log_var = (to_device(np.concatenate([array, 0 * array])) for array in (mu, log_var))
    assert float(kl_divergence(mu, log_var)[0]) == pytest.approx(sum(expected) / 2, rel=1e-9)
    np.testing.assert_allclose(to_cpu(kl_per_dimension(mu, log_var)), np.array(expected) / 2, rtol=1e-9)


def test_free_bits_by_hand():
    kl = to_device(np.array([0.05, 0.1, 0.25, 3.0], np.float32))
    term, weights = free_bits(kl, 0.1)
    assert float(term) == pytest.approx(0.1 + 0.1 + 0.25 + 3)
    np.testing.assert_array_equal(to_cpu(weights), [0, 0, 1, 1])
    assert weights.dtype == kl.dtype


@pytest.mark.parametrize("sigma", [0, -1, float("nan")])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(InputError, match="must be above 0"):
        Gaussian(sigma)


def test_likelihood_of():
    assert repr(likelihood_of("bernoulli")) == "Bernoulli()"
    assert repr(likelihood_of("gaussian", 0.3)) == "Gaussian(sigma=0.3)"
    assert repr(likelihood_of("calibrated")) == "CalibratedGaussian(sigma=0.3)"
    with pytest.raises(InputError, match=r"no likelihood 'laplace'$"):
        likelihood_of("laplace", 0.3)
    with pytest.raises(InputError, match=r"no likelihood 'bernoulli' with sigma 0\.3"):
        likelihood_of("bernoulli", 0.3)
