"""The second stage: its gradient, its loss by loops, a bent distribution that no Gaussian describes, its bound."""

import math

import numpy as np
import pytest
from chance import assert_like_draws

from vae_np.backend import to_cpu, to_device
from vae_np.gradcheck import check_direction
from vae_np.study.priors import Gaussian
from vae_np.study.two_stage import CodeVAE, TwoStage


def vectors(rng, count=6, latent_dim=3, dtype="float64"):
    return tuple(to_device(rng.standard_normal((count, latent_dim)).astype(dtype)) for _ in range(2))


def bent(count, seed):
    """Codes along a parabola, and posteriors that are nearly points: (mu, log_var)."""
    rng = np.random.default_rng(seed)
    t = rng.standard_normal(count)
    mu = np.stack([t, t * t + 0.1 * rng.standard_normal(count)], axis=1).astype(np.float32)
    return mu, np.full_like(mu, -8.0)


@pytest.fixture(scope="module")
def two_stage():
    return TwoStage.fit(*bent(3000, 1), np.random.default_rng(0), epochs=40)


def test_the_gradient_is_that_of_the_loss(rng):
    model = CodeVAE(3, rng, width=5, dtype="float64")
    w, eps = vectors(rng)
    model.loss_and_gradient(w, eps)
    gradient = model.grads.copy()
    for _ in range(5):
        assert check_direction(lambda: sum(model.loss_and_gradient(w, eps)), model.values, gradient, rng) < 1e-6


def test_the_loss_equals_loops(rng):
    model = CodeVAE(3, rng, width=5, dtype="float64")
    w, eps = vectors(rng)
    recon, kl = model.loss_and_gradient(w, eps)
    mu, log_var = (to_cpu(array) for array in model.encode(w))
    mean = to_cpu(model.decoder.forward(to_device(mu + np.exp(log_var / 2) * to_cpu(eps))))
    errors = [(a - b) ** 2 for a, b in zip(mean.ravel(), to_cpu(w).ravel(), strict=True)]
    variance = sum(errors) / len(errors)
    by_hand = sum(error / (2 * variance) + 0.5 * math.log(2 * math.pi * variance) for error in errors) / len(w)
    assert float(recon) == pytest.approx(by_hand, rel=1e-10)
    assert float(model.sigma) == pytest.approx(math.sqrt(variance), rel=1e-10)
    by_hand = sum(m * m + math.exp(v) - 1 - v for m, v in zip(mu.ravel(), log_var.ravel(), strict=True)) / 2 / len(w)
    assert float(kl) == pytest.approx(by_hand, rel=1e-10)


def test_the_mean_log_weight_is_the_elbo(rng):
    model = CodeVAE(3, rng, width=5, dtype="float64")
    w, _ = vectors(rng)
    eps = rng.standard_normal((4000, *w.shape))
    mean, terms = 0.0, 0.0
    model.loss_and_gradient(w, to_device(eps[0]))
    sigma = float(model.sigma)
    for one in eps:
        model.sigma = sigma
        mean += to_cpu(model.log_weights(w, to_device(one))).mean() / len(eps)
        recon, kl = (float(term) for term in model.loss_and_gradient(w, to_device(one)))
        errors = w.size * float(model.sigma) ** 2 / len(w)  # the loss has a sigma of its own for every batch
        recon = errors / (2 * sigma**2) + 3 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        terms += (recon + kl) / len(eps)
    assert mean == pytest.approx(-terms, abs=0.05)  # eps^2 is 1 on average only


def test_everything_stays_float32(rng):
    model = CodeVAE(3, rng)
    w, eps = vectors(rng, dtype="float32")
    recon, kl = model.loss_and_gradient(w, eps)
    assert {array.dtype for array in (model.values, model.grads, recon, kl, model.sigma)} == {np.dtype("float32")}


def test_it_describes_a_bent_distribution_better_than_a_gaussian(two_stage):
    mu, log_var = bent(3000, 1)
    new, _ = bent(2000, 2)
    gaussian = Gaussian.fit(mu, log_var, None)
    assert two_stage.log_density(new).mean() > gaussian.log_density(new).mean() + 0.5


def test_samples_lie_along_the_bend(two_stage):
    z = two_stage.sample(2000, np.random.default_rng(0))
    assert z.dtype == np.float32
    assert np.abs(z[:, 1] - z[:, 0] ** 2).mean() < 0.35  # of the Gaussian's samples: 1.7
    np.testing.assert_allclose(z.mean(axis=0), [0, 1], atol=0.25)
    np.testing.assert_array_equal(z, two_stage.sample(2000, np.random.default_rng(0)))
    assert not np.array_equal(z, two_stage.sample(2000, np.random.default_rng(1)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_noise_of_the_decoder(temperature):
    values = np.zeros_like(TwoStage.fit(*bent(20, 0), np.random.default_rng(0), epochs=1).arrays["values"])
    silent = TwoStage(values, 0.3, [1.0, -2.0], np.array([[2.0, 0.5], [0.5, 1.0]]))  # whose decoder gives 0 for all u
    z = silent.sample(4000, np.random.default_rng(2), temperature)
    assert_like_draws(silent.gaussian.whiten(z), 0, (0.3 * temperature) ** 2)


def test_a_low_temperature_keeps_codes_near_a_centre(two_stage):
    cold = two_stage.sample(50, np.random.default_rng(0), temperature=0.0)
    np.testing.assert_allclose(cold, np.tile(cold[0], (50, 1)), rtol=1e-4)
    cool = two_stage.sample(500, np.random.default_rng(0), temperature=0.3)
    assert (cool.std(axis=0) < 0.6 * two_stage.sample(500, np.random.default_rng(0)).std(axis=0)).all()


def test_the_bound_rises_with_k_and_stays_below_the_log_density(two_stage):
    z, _ = bent(400, 3)
    bounds = [two_stage.log_density(z, k).mean() for k in (1, 8, 64)]
    assert bounds[0] < bounds[1] < bounds[2]
    # The integral over u itself, by the midpoint rule on a grid.
    side = (np.arange(400) + 0.5) / 400 * 12 - 6
    u = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
    mean = to_cpu(two_stage.vae.decoder.forward(to_device(u))).astype(float)
    log_prior = -0.5 * (u.astype(float) ** 2).sum(axis=1) - math.log(2 * math.pi)
    w = two_stage.gaussian.whiten(z)
    exact = []
    for row in w:
        squares = ((mean - row) ** 2).sum(axis=1) / two_stage.vae.sigma**2
        log_likelihood = -0.5 * squares - math.log(2 * math.pi * two_stage.vae.sigma**2)
        exact.append(math.log((np.exp(log_prior + log_likelihood) * (12 / 400) ** 2).sum()))
    exact = np.mean(exact) - np.log(np.diagonal(np.linalg.cholesky(two_stage.gaussian.covariance))).sum()
    assert bounds[2] <= exact + 0.02
    assert bounds[2] == pytest.approx(exact, abs=0.1)
    np.testing.assert_array_equal(two_stage.log_density(z), two_stage.log_density(z))


def test_the_same_generator_gives_the_same_fit(rng):
    mu, log_var = bent(200, 1)
    first, again, other = (TwoStage.fit(mu, log_var, np.random.default_rng(seed), epochs=2) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.arrays["values"], again.arrays["values"])
    assert first.vae.sigma == again.vae.sigma
    assert not np.array_equal(first.arrays["values"], other.arrays["values"])
