"""Expectation-maximisation rises at every step, finds a mixture that is known, and survives awkward codes."""

import math

import numpy as np
import pytest
from chance import assert_like_draws
from test_priors import integral, posteriors

from vae_np.errors import InputError
from vae_np.study.mixture import Mixture, log_sum_exp
from vae_np.study.priors import Gaussian, draw

WEIGHTS, MEANS = np.array([0.7, 0.3]), np.array([[-2.0, 0], [3.0, 1]])
COVARIANCES = np.array([[[1.0, 0.5], [0.5, 0.6]], [[0.4, -0.3], [-0.3, 0.7]]])
KNOWN = Mixture(WEIGHTS, MEANS, COVARIANCES)
SHARP = -30.0  # the log variance of posteriors that are points


def fit_to(codes, seed=0, **settings):
    codes = codes.astype(np.float32)
    return Mixture.fit(codes, np.full_like(codes, SHARP), np.random.default_rng(seed), **settings)


def log_likelihood(prior, codes):
    return prior.log_density(codes).mean()


def test_the_density_integrates_to_1():
    assert integral(KNOWN) == pytest.approx(1, abs=1e-4)


def test_the_density_equals_a_loop(rng):
    z = 3 * rng.standard_normal((9, 2))
    for n, row in enumerate(z):
        total = 0.0
        for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
            squares = (row - mean) @ np.linalg.inv(covariance) @ (row - mean)
            total += weight * math.exp(-0.5 * squares) / math.sqrt((2 * math.pi) ** 2 * np.linalg.det(covariance))
        assert KNOWN.log_density(z)[n] == pytest.approx(math.log(total), rel=1e-10)


def test_far_away_the_density_is_still_a_number():
    assert KNOWN.log_density(np.array([[1e4, -1e4]]))[0] < -1e6
    assert np.isfinite(KNOWN.log_density(np.array([[1e4, -1e4]]))).all()
    np.testing.assert_allclose(log_sum_exp(np.array([[-1000.0, -1000.0], [1000.0, 0]])), [-1000 + math.log(2), 1000])


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
    assert abs(log_likelihood(found, new) - log_likelihood(KNOWN, new)) < 0.01
    assert log_likelihood(found, new) > log_likelihood(Gaussian.fit(codes, np.full_like(codes, SHARP), None), new) + 0.3


@pytest.mark.parametrize("shrinkage", [1e-9, 1.0, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_what_it_maximises_never_falls(seed, shrinkage, rng):
    mu, log_var = posteriors(rng, count=300)
    rise = Mixture.fit(mu, log_var, np.random.default_rng(seed), 6, shrinkage, tolerance=1e-7, max_steps=60).rise
    assert len(rise) > 5
    assert np.diff(rise).min() > -1e-9
    assert rise[-1] - rise[-2] < 0.01 * (rise[-1] - rise[0])


def test_without_shrinkage_the_log_likelihood_itself_never_falls():
    codes = KNOWN.sample(500, np.random.default_rng(5)).astype(np.float64)
    mixture = Mixture(np.full(3, 1 / 3), codes[:3], np.stack([np.eye(2)] * 3))
    likelihoods = []
    for _ in range(40):
        likelihoods.append(log_likelihood(mixture, codes))
        joint = mixture.log_joint(codes)
        responsibilities = np.exp(joint) / np.exp(joint).sum(axis=1, keepdims=True)
        mixture = Mixture.maximised(codes, responsibilities, np.eye(2), shrinkage=0.0)
        mixture = Mixture(responsibilities.mean(axis=0), mixture.means, mixture.covariances)  # no imagined codes at all
    assert np.diff(likelihoods).min() > -1e-12
    assert likelihoods[-1] > likelihoods[0] + 0.1


def test_the_m_step_equals_loops(rng):
    codes, responsibilities = rng.standard_normal((20, 3)), rng.random((20, 2))
    responsibilities /= responsibilities.sum(axis=1, keepdims=True)
    imagined = np.diag([1.0, 2.0, 3.0])
    found = Mixture.maximised(codes, responsibilities, imagined, shrinkage=5.0)
    for k in range(2):
        count = sum(responsibilities[:, k])
        pairs = list(zip(responsibilities[:, k], codes, strict=True))
        mean = sum(r * code for r, code in pairs) / count
        scatter = sum(r * np.outer(code - mean, code - mean) for r, code in pairs)
        np.testing.assert_allclose(found.means[k], mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariances[k], (scatter + 5 * imagined) / (count + 5), rtol=1e-12)
        assert found.weights[k] == pytest.approx((count + 1) / 22)


def test_the_m_step_is_a_maximum_of_the_objective(rng):
    codes = rng.standard_normal((200, 2)) @ np.array([[1, 0.5], [0, 1]])
    whole = Gaussian(codes.mean(axis=0), np.cov(codes.T))
    mixture = Mixture.maximised(codes, np.ones((200, 1)), whole.covariance, shrinkage=30.0)

    def objective(mixture):
        return mixture.log_density(codes).sum() + mixture.log_penalty(whole, 30.0)

    best = objective(mixture)
    for _ in range(20):  # with one component no E step is in the way
        nudge = 0.02 * rng.standard_normal((2, 2))
        other = Mixture(mixture.weights, mixture.means + nudge[:1], mixture.covariances + nudge + nudge.T)
        assert objective(other) < best


def test_with_one_component_it_is_the_gaussian(rng):
    mu, log_var = posteriors(rng, count=5000)
    one, gaussian = Mixture.fit(mu, log_var, rng, components=1), Gaussian.fit(mu, log_var, rng)
    np.testing.assert_allclose(one.covariances[0], gaussian.covariance, rtol=0.1, atol=0.1)  # of drawn codes
    np.testing.assert_allclose(one.means[0], gaussian.mean, atol=0.15)


@pytest.mark.parametrize(
    "codes",
    [
        np.repeat([[0.0, 0], [5.0, 5]], 20, axis=0) + 1e-3 * np.arange(40)[:, None],  # two lines for ten components
        np.concatenate([np.random.default_rng(0).standard_normal((50, 2)), [[1e3, 1e3]]]),  # one far away, for itself
        np.random.default_rng(0).standard_normal((4, 2)),  # fewer codes than components
    ],
)
def test_degenerate_codes_are_survived(codes):
    # Points on a line have a singular covariance; what keeps it regular are the posteriors' own widths.
    codes = codes.astype(np.float32)
    mixture = Mixture.fit(codes, np.full_like(codes, -4.0), np.random.default_rng(0), shrinkage=1.0, tolerance=1e-9)
    assert np.isfinite(mixture.log_density(codes)).all()
    assert np.isfinite(mixture.sample(10, np.random.default_rng(0))).all()
    assert np.diff(mixture.rise).min() > -1e-9
    assert len(mixture.weights) == min(10, len(codes))


def test_a_component_without_codes_is_survived():
    codes, responsibilities = np.random.default_rng(0).standard_normal((30, 2)), np.zeros((30, 2))
    responsibilities[:, 0] = 1
    mixture = Mixture.maximised(codes, responsibilities, np.eye(2), shrinkage=4.0)
    np.testing.assert_allclose(mixture.covariances[1], np.eye(2))
    assert mixture.weights[1] == pytest.approx(1 / 32)
    assert np.isfinite(mixture.log_density(codes)).all()


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.0, 0.0], [1.0], [1.5, -0.5]])
def test_what_is_no_mixture_is_refused(weights):
    with pytest.raises(InputError, match="weights above 0 whose sum is 1"):
        Mixture(np.array(weights), MEANS, COVARIANCES)


def test_codes_are_drawn_not_taken_from_the_middle(rng):
    mu, log_var = np.zeros((3000, 2), np.float32), np.full((3000, 2), math.log(4), np.float32)
    mixture = Mixture.fit(mu, log_var, rng, components=1)
    np.testing.assert_allclose(mixture.covariances[0], 4 * np.eye(2), atol=0.4)
    assert_like_draws(draw(mu, log_var, rng), 0, 4)
