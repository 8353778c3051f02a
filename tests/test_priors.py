"""Densities that integrate to 1, samples that have their moments, the aggregate posterior's exact moments."""

import math
import subprocess
import sys

import numpy as np
import pytest
from chance import assert_like_draws, assert_uncorrelated
from test_checkpoint import SMALL, fitted, save_training

from vae_np import VAE
from vae_np.errors import InputError
from vae_np.run.checkpoint import store_prior
from vae_np.study.priors import PRIORS, GaussianPrior, StandardPrior, draw, log_sum_exp, prior_kind

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, -0.6], [-0.6, 0.5]])


def integral(prior, side=8.0, points=400):
    """The integral of a density of two dimensions over a square around 0, by the midpoint rule."""
    middle = (np.arange(points) + 0.5) / points * 2 * side - side
    z = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    return np.exp(prior.log_density(z)).sum() * (2 * side / points) ** 2


def posteriors(rng, count=200, latent_dim=3):
    """Clouds that differ in place and width, as an encoder might give them."""
    mu = rng.standard_normal((count, latent_dim), dtype=np.float32) @ np.array(
        [[1, 0.5, 0], [0, 1, -2], [0.3, 0, 0.1]], np.float32) + np.float32(0.7)
    return mu, rng.standard_normal((count, latent_dim), dtype=np.float32) - 1


def test_the_densities_integrate_to_1_and_equal_loops(rng):
    assert [integral(prior) for prior in (StandardPrior(2), GaussianPrior(MEAN, COVARIANCE))] == pytest.approx([1, 1])
    z = rng.standard_normal((7, 3), dtype=np.float32)
    covariance = np.array([[2.0, 0.3, 0], [0.3, 1, -0.5], [0, -0.5, 0.9]])
    mean = np.array([1.0, 0, -1])
    precision = np.linalg.inv(covariance)
    for n, row in enumerate(z.tolist()):
        standard = sum(-0.5 * a * a - 0.5 * math.log(2 * math.pi) for a in row)
        squares = sum((row[i] - mean[i]) * precision[i, j] * (row[j] - mean[j]) for i in range(3) for j in range(3))
        fitted = -0.5 * squares - 0.5 * math.log((2 * math.pi) ** 3 * np.linalg.det(covariance))
        assert StandardPrior(3).log_density(z)[n] == pytest.approx(standard, rel=1e-12)
        assert GaussianPrior(mean, covariance).log_density(z)[n] == pytest.approx(fitted, rel=1e-12)


def test_a_code_is_drawn_from_its_own_posterior():
    mu = np.array([[3.0, -1.0]] * 4000, np.float32)
    log_var = np.log(np.array([[4.0, 0.25]] * 4000, np.float32))  # deviations 2 and 1/2
    z = draw(mu, log_var, np.random.default_rng(1))
    assert z.dtype == np.float32
    assert_like_draws(z, [3, -1], [4, 0.25])
    assert_uncorrelated(z[:, 0], z[:, 1])


def test_the_fitted_gaussian_has_the_moments_of_the_mixture_of_all_clouds(rng):
    mu, log_var = posteriors(rng)
    fitted = GaussianPrior.fit(mu, log_var, rng)
    first, second = np.zeros(3), np.zeros((3, 3))
    for m, lv in zip(mu.astype(float), log_var.astype(float), strict=True):
        first += m / len(mu)
        second += (np.outer(m, m) + np.diag(np.exp(lv))) / len(mu)
    np.testing.assert_allclose(fitted.mean, first, rtol=1e-12)
    np.testing.assert_allclose(fitted.covariance, second - np.outer(first, first), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_mean_and_the_covariance(temperature):
    prior, rng = GaussianPrior(MEAN, COVARIANCE), np.random.default_rng(4)
    z = prior.sample(5000, rng, temperature)
    assert z.dtype == np.float32
    assert_like_draws(z, MEAN, temperature**2 * np.diagonal(COVARIANCE))
    white = prior.whiten(z)  # independent, if the covariance is as it should be
    assert_like_draws(white, 0, temperature**2)
    assert_uncorrelated(white[:, 0], white[:, 1])
    assert_uncorrelated(white, prior.whiten(prior.sample(5000, rng, temperature)))
    np.testing.assert_array_equal(z, prior.sample(5000, np.random.default_rng(4), temperature))


def test_standard_samples_are_the_noise_itself():
    noise = np.random.default_rng(3).standard_normal((5, 4), dtype=np.float32)
    np.testing.assert_array_equal(StandardPrior(4).sample(5, np.random.default_rng(3)), noise)
    cool = StandardPrior(4).sample(5, np.random.default_rng(3), temperature=0.5)
    np.testing.assert_array_equal(cool, noise / 2)
    assert cool.dtype == np.float32
    assert StandardPrior.fit(noise, noise, None).latent_dim == 4


def test_whiten_and_colour_undo_each_other(rng):
    prior, z = GaussianPrior(MEAN, COVARIANCE), rng.standard_normal((6, 2))
    np.testing.assert_allclose(prior.colour(prior.whiten(z)), z, rtol=1e-12)
    np.testing.assert_allclose(prior.whiten(prior.colour(z)), z, rtol=1e-12)


def test_log_sum_exp_neither_overflows_nor_vanishes():
    np.testing.assert_allclose(log_sum_exp(np.array([[-1000.0, -1000.0], [1000.0, 0]])), [-1000 + math.log(2), 1000])


@pytest.mark.parametrize("covariance", [np.array([[1.0, 2], [2, 1]]), np.zeros((2, 2)), -np.eye(2)])
def test_a_covariance_that_is_none_is_refused(covariance):
    with pytest.raises(InputError, match="must be positive definite, and this one is not"):
        GaussianPrior(np.zeros(2), covariance)


def test_every_kind_has_the_name_that_it_is_known_by():
    assert {name: prior_kind(name).name for name in PRIORS} == {name: name for name in PRIORS}


def test_loading_a_checkpoint_imports_the_prior_that_it_holds_and_no_other(tmp_path):
    model, paths = VAE(**SMALL), (tmp_path / "none.npz", tmp_path / "mixture.npz")
    for path in paths:
        save_training(path, model)
    model.prior = fitted("mixture")
    store_prior(paths[1], model)
    program = ("import sys; from vae_np.run.checkpoint import load_model\n"
               "for path in sys.argv[1:]:\n"
               "    load_model(path)\n"
               "    print(*('vae_np.study.' + name in sys.modules for name in ('mixture', 'flow')))")
    result = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["False False", "True False"]
