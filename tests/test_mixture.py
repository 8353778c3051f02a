"""Expectation-maximisation rises at every step, finds a mixture that is known, and survives awkward codes."""

import math

import numpy as np
import pytest
from test_priors import integral, posteriors

from vae_np.errors import InputError
from vae_np.study.mixture import MixturePrior
from vae_np.study.priors import GaussianPrior

WEIGHTS, MEANS = np.array([0.7, 0.3]), np.array([[-2.0, 0], [3.0, 1]])
COVARIANCES = np.array([[[1.0, 0.5], [0.5, 0.6]], [[0.4, -0.3], [-0.3, 0.7]]])
KNOWN = MixturePrior(WEIGHTS, MEANS, COVARIANCES)


def fit_to(codes, log_var=-30.0, **settings):
    """Fit to posteriors of one width, by default to points."""
    codes = codes.astype(np.float32)
    return MixturePrior.fit(codes, np.full_like(codes, log_var), np.random.default_rng(0), **settings)


def log_likelihood(prior, codes):
    return prior.log_density(codes).mean()


def test_the_density_integrates_to_1_and_equals_a_loop(rng):
    assert integral(KNOWN) == pytest.approx(1, abs=1e-4)
    z = 3 * rng.standard_normal((9, 2))
    for n, row in enumerate(z):
        total = 0.0
        for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
            squares = (row - mean) @ np.linalg.inv(covariance) @ (row - mean)
            total += weight * math.exp(-0.5 * squares) / math.sqrt((2 * math.pi) ** 2 * np.linalg.det(covariance))
        assert KNOWN.log_density(z)[n] == pytest.approx(math.log(total), rel=1e-10)
    assert -np.inf < KNOWN.log_density(np.array([[1e4, -1e4]]))[0] < -1e6, "far away, too, it is a number"


def test_samples_come_from_every_component_at_its_weight():
    z = KNOWN.sample(20_000, np.random.default_rng(2))
    assert z.dtype == np.float32
    left = z[:, 0] < 0.8  # between the two, far from both
    assert left.mean() == pytest.approx(0.7, abs=0.02)
    for part, mean, covariance in zip((z[left], z[~left]), MEANS, COVARIANCES, strict=True):
        np.testing.assert_allclose(part.mean(axis=0), mean, atol=0.05)
        np.testing.assert_allclose(np.cov(part.T), covariance, atol=0.06)
    np.testing.assert_array_equal(z, KNOWN.sample(20_000, np.random.default_rng(2)))
    cold = KNOWN.sample(50, np.random.default_rng(2), temperature=0.0)
    assert {tuple(row) for row in cold.tolist()} == {tuple(row) for row in MEANS.tolist()}


def test_it_finds_a_mixture_that_is_known():
    codes = KNOWN.sample(6000, np.random.default_rng(5))
    found = fit_to(codes, components=2, shrinkage=1.0, tolerance=1e-6)
    order = np.argsort(found.means[:, 0])
    np.testing.assert_allclose(found.weights[order], WEIGHTS, atol=0.02)
    np.testing.assert_allclose(found.means[order], MEANS, atol=0.1)
    np.testing.assert_allclose(found.covariances[order], COVARIANCES, atol=0.08)
    new = KNOWN.sample(6000, np.random.default_rng(6))
    gaussian = GaussianPrior.fit(codes, np.full_like(codes, -30), None)
    assert log_likelihood(found, new) == pytest.approx(log_likelihood(KNOWN, new), abs=0.01)
    assert log_likelihood(found, new) > log_likelihood(gaussian, new) + 0.3


@pytest.mark.parametrize("shrinkage", [1e-9, 1.0, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_what_it_maximises_never_falls(seed, shrinkage, rng):
    mu, log_var = posteriors(rng, count=300)
    rise = MixturePrior.fit(mu, log_var, np.random.default_rng(seed), 6, shrinkage, tolerance=1e-7, max_steps=60).rise
    assert len(rise) > 5
    assert np.diff(rise).min() > -1e-9
    assert rise[-1] - rise[-2] < 0.01 * (rise[-1] - rise[0])


def test_the_m_step_equals_loops_even_for_a_component_without_codes(rng):
    codes, responsibilities = rng.standard_normal((20, 3)), rng.random((20, 3)) * [1, 1, 0]
    responsibilities /= responsibilities.sum(axis=1, keepdims=True)
    imagined = np.diag([1.0, 2.0, 3.0])
    found = MixturePrior.maximised(codes, responsibilities, imagined, shrinkage=5.0)
    for k, r in enumerate(responsibilities.T):
        count = sum(r)
        mean = sum(a * code for a, code in zip(r, codes, strict=True)) / (count or 1)
        scatter = sum(a * np.outer(code - mean, code - mean) for a, code in zip(r, codes, strict=True))
        np.testing.assert_allclose(found.means[k], mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariances[k], (scatter + 5 * imagined) / (count + 5), rtol=1e-12)
        assert found.weights[k] == pytest.approx((count + 1) / 23)
    assert np.isfinite(found.log_density(codes)).all()


def test_with_one_component_it_is_the_gaussian_of_drawn_codes(rng):
    mu, log_var = posteriors(rng, count=5000)
    one, gaussian = MixturePrior.fit(mu, log_var, rng, components=1), GaussianPrior.fit(mu, log_var, rng)
    np.testing.assert_allclose(one.covariances[0], gaussian.covariance, rtol=0.1, atol=0.1)
    np.testing.assert_allclose(one.means[0], gaussian.mean, atol=0.15)


@pytest.mark.parametrize("codes", [
    np.repeat([[0.0, 0], [5.0, 5]], 20, axis=0) + 1e-3 * np.arange(40)[:, None],  # two lines for ten components
    np.concatenate([np.random.default_rng(0).standard_normal((50, 2)), [[1e3, 1e3]]]),  # one far away, for itself
    np.random.default_rng(0).standard_normal((4, 2)),  # fewer codes than components
])
def test_degenerate_codes_are_survived(codes):
    # Points on a line have a singular covariance; what keeps it regular are the posteriors' own widths.
    mixture = fit_to(codes, log_var=-4.0, shrinkage=1.0, tolerance=1e-9)
    assert np.isfinite(mixture.log_density(codes)).all()
    assert np.isfinite(mixture.sample(10, np.random.default_rng(0))).all()
    assert np.diff(mixture.rise).min() > -1e-9
    assert len(mixture.weights) == min(10, len(codes))


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.0, 0.0], [1.0], [1.5, -0.5]])
def test_what_is_no_mixture_is_refused(weights):
    with pytest.raises(InputError, match="weights above 0 whose sum is 1"):
        MixturePrior(np.array(weights), MEANS, COVARIANCES)
