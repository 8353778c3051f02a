"""PSNR, SSIM, the ELBO on held-out images, active units and principal components, against their definitions."""

import math

import numpy as np
import pytest

from vae_np import VAE, parallel
from vae_np.data import to_float
from vae_np.losses import Bernoulli, Gaussian, kl_divergence
from vae_np.metrics import PrincipalComponents, active_units, evaluate, kl_per_dimension, psnr, smooth, ssim
from vae_np.parallel import Workers


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
    logits, mu, log_var = model.forward(x, eps)
    got = evaluate(Workers(model, 2), images, likelihood, seed=4)
    assert got["recon"] == pytest.approx(float(likelihood(logits, x)[0]), rel=1e-5)
    assert got["kl"] == pytest.approx(float(kl_divergence(mu, log_var)[0]), rel=1e-5)
    assert got["psnr"] == pytest.approx(float(psnr(x, model.reconstruct(x)).mean()), rel=1e-5)
    assert all(type(value) is float for value in got.values())


def test_kl_per_dimension_sums_to_the_kl(rng):
    mu, log_var = rng.standard_normal((20, 4)), rng.standard_normal((20, 4))
    per_dimension = kl_per_dimension(mu, log_var)
    assert per_dimension.shape == (4,)
    assert math.isclose(per_dimension.sum(), float(kl_divergence(mu, log_var)[0]))


def test_active_units(rng):
    mu = rng.standard_normal((5000, 3)) * [1, 0.09, 0.11] + [0, 7, 0]
    np.testing.assert_array_equal(active_units(mu), [True, False, True])


def test_principal_components_are_those_of_the_svd(rng):
    scales = np.repeat([60, 30, 15, 3], [1, 2, 2, 187])
    mixing, _ = np.linalg.qr(rng.standard_normal((192, 192)))
    flat = 128 + (rng.standard_normal((300, 192)) * scales) @ mixing.T / 4
    images = np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(300, 8, 8, 3)
    x = to_float(images)
    centred = x.reshape(300, -1) - x.reshape(300, -1).mean(axis=0)
    _, strengths, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    pca = PrincipalComponents(images, 5, iterations=8)
    np.testing.assert_allclose(pca.variances, strengths[:5] ** 2 / 300, rtol=1e-3)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(5), atol=1e-5)
    projector = directions[:5].T @ directions[:5]
    np.testing.assert_allclose(pca.components.T @ pca.components, projector, atol=2e-3)
    expected = (centred @ projector).reshape(x.shape) + x.mean(axis=0)
    np.testing.assert_allclose(pca.reconstruct(x), np.clip(expected, 0, 1), atol=2e-3)
    first = pca.decode(pca.encode(x)[:, :2])
    assert psnr(x, first).mean() < psnr(x, pca.reconstruct(x)).mean()
    assert pca.reconstruct(x).dtype == np.float32
