"""The second stage: its gradient, its loss by loops, a bent distribution that no Gaussian describes, its bound."""

import math

import numpy as np
import pytest
from chance import assert_like_draws

from vae_np.backend import to_cpu, to_device
from vae_np.gradcheck import check_direction
from vae_np.study.priors import GaussianPrior
from vae_np.study.two_stage import CodeVAE, TwoStagePrior


def bent(count, seed):
    """Codes along a parabola, and posteriors that are nearly points: (mu, log_var)."""
    rng = np.random.default_rng(seed)
    t = rng.standard_normal(count)
    mu = np.stack([t, t * t + 0.1 * rng.standard_normal(count)], axis=1).astype(np.float32)
    return mu, np.full_like(mu, -8.0)


@pytest.fixture(scope="module")
def two_stage():
    return TwoStagePrior.fit(*bent(3000, 1), np.random.default_rng(0), epochs=40)


def test_the_loss_and_the_weights_equal_loops_and_the_gradient_is_that_of_the_loss(rng):
    model, (w, eps) = CodeVAE(3, rng, width=5, dtype="float64"), to_device(rng.standard_normal((2, 6, 3)))
    recon, kl = model.loss_and_gradient(w, eps)
    gradient = model.grads.copy()
    mean, mu, log_var = (to_cpu(array) for array in model.forward(w, eps))
    errors = [(a - b) ** 2 for a, b in zip(mean.ravel(), to_cpu(w).ravel(), strict=True)]
    variance = sum(errors) / len(errors)
    by_hand = sum(error / (2 * variance) + 0.5 * math.log(2 * math.pi * variance) for error in errors) / len(w)
    assert float(recon) == pytest.approx(by_hand, rel=1e-10)
    assert float(model.likelihood.sigma) == pytest.approx(math.sqrt(variance), rel=1e-10)
    by_hand = sum(m * m + math.exp(v) - 1 - v for m, v in zip(mu.ravel(), log_var.ravel(), strict=True)) / 2 / len(w)
    assert float(kl) == pytest.approx(by_hand, rel=1e-10)

    def log_normal(x, mean, deviation):
        return sum(-0.5 * ((a - m) / d) ** 2 - math.log(d) - 0.5 * math.log(2 * math.pi)
                   for a, m, d in np.broadcast(x, mean, deviation))

    deviation, sigma = np.exp(log_var / 2), math.sqrt(variance)
    for n, weight in enumerate(to_cpu(model.log_weights(w, eps))):
        u = mu[n] + deviation[n] * to_cpu(eps)[n]
        by_hand = log_normal(to_cpu(w)[n], mean[n], sigma) + log_normal(u, 0, 1) - log_normal(u, mu[n], deviation[n])
        assert weight == pytest.approx(by_hand, rel=1e-10)
    for _ in range(5):
        assert check_direction(lambda: sum(model.loss_and_gradient(w, eps)), model.values, gradient, rng) < 1e-6


def test_everything_stays_float32(rng):
    model = CodeVAE(3, rng)
    recon, kl = model.loss_and_gradient(*to_device(rng.standard_normal((2, 6, 3), dtype=np.float32)))
    arrays = (model.values, model.grads, recon, kl, model.likelihood.sigma)
    assert {array.dtype for array in arrays} == {np.dtype("float32")}


def test_it_describes_a_bent_distribution_and_samples_lie_along_the_bend(two_stage):
    (new, _), gaussian = bent(300, 2), GaussianPrior.fit(*bent(3000, 1), None)
    assert two_stage.log_density(new).mean() > gaussian.log_density(new).mean() + 0.5
    w = to_device(two_stage.gaussian.whiten(new).astype(np.float32))
    mean, *_ = two_stage.vae.forward(w, to_device(np.random.default_rng(0).standard_normal(w.shape, np.float32)))
    assert two_stage.sigma == pytest.approx(math.sqrt(((mean - w) ** 2).mean()), rel=0.15)
    z = two_stage.sample(2000, np.random.default_rng(0))
    assert z.dtype == np.float32
    assert np.abs(z[:, 1] - z[:, 0] ** 2).mean() < 0.35  # of the Gaussian's samples: 1.7
    np.testing.assert_allclose(z.mean(axis=0), [0, 1], atol=0.25)
    np.testing.assert_array_equal(z, two_stage.sample(2000, np.random.default_rng(0)))
    assert not np.array_equal(z, two_stage.sample(2000, np.random.default_rng(1)))
    cold = two_stage.sample(50, np.random.default_rng(0), temperature=0.0)
    np.testing.assert_allclose(cold, np.tile(cold[0], (50, 1)), rtol=1e-4)
    assert (two_stage.sample(500, np.random.default_rng(0), temperature=0.3).std(axis=0) < 0.6 * z.std(axis=0)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_noise_of_the_decoder(temperature):
    # A decoder whose parameters are 0 gives 0 for all u.
    values = np.zeros(TwoStagePrior.shapes(2)["values"][0], np.float32)
    silent = TwoStagePrior(values, 0.3, [1.0, -2.0], np.array([[2.0, 0.5], [0.5, 1.0]]))
    z = silent.sample(4000, np.random.default_rng(2), temperature)
    assert_like_draws(silent.gaussian.whiten(z), 0, (0.3 * temperature) ** 2)


def test_the_bound_rises_with_k_and_stays_below_the_log_density(two_stage):
    z, _ = bent(100, 3)
    bounds = [two_stage.log_density(z, k).mean() for k in (1, 8, 64)]
    assert bounds[0] < bounds[1] < bounds[2]
    # The integral over u itself, by the midpoint rule on a grid.
    side = (np.arange(200) + 0.5) / 200 * 12 - 6
    u = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    mean = to_cpu(two_stage.vae.decoder.forward(to_device(u.astype(np.float32)))).astype(float)
    log_prior = -0.5 * (u**2).sum(axis=1) - math.log(2 * math.pi)
    exact = []
    for row in two_stage.gaussian.whiten(z):
        squares = ((mean - row) ** 2).sum(axis=1) / two_stage.sigma**2
        log_likelihood = -0.5 * squares - math.log(2 * math.pi * two_stage.sigma**2)
        exact.append(math.log((np.exp(log_prior + log_likelihood) * (12 / 200) ** 2).sum()))
    exact = np.mean(exact) - np.log(np.diagonal(np.linalg.cholesky(two_stage.gaussian.covariance))).sum()
    assert bounds[2] <= exact + 0.02
    assert bounds[2] == pytest.approx(exact, abs=0.1)
    np.testing.assert_array_equal(two_stage.log_density(z), two_stage.log_density(z))


def test_the_same_generator_gives_the_same_fit():
    first, again, other = (TwoStagePrior.fit(*bent(200, 1), np.random.default_rng(seed), epochs=2).arrays
                           for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["values"], other["values"])
