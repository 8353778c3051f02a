"""The principal components of images, beside a singular value decomposition."""

import numpy as np

from vae_np.disk.dataset import to_float
from vae_np.study.metrics import psnr
from vae_np.study.principal_components import PrincipalComponents


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
