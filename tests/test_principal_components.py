"""The principal components of images, beside a singular value decomposition."""

import numpy as np

from vae_np.study.principal_components import PrincipalComponents
from vae_np.train import to_float


def test_principal_components_are_those_of_the_svd(rng):
    scales = np.repeat([60, 30, 15, 3], [1, 2, 2, 187])
    mixing, _ = np.linalg.qr(rng.standard_normal((192, 192)))
    flat = 128 + (rng.standard_normal((300, 192)) * scales) @ mixing.T / 4
    images = np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(300, 8, 8, 3)
    x = to_float(images)
    centred = x.reshape(300, -1) - x.reshape(300, -1).mean(axis=0)
    _, strengths, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    pca = PrincipalComponents.fit(images, 5, iterations=8)
    np.testing.assert_allclose(pca.variances, strengths[:5] ** 2 / 300, rtol=1e-3)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(5), atol=1e-5)
    assert pca.reconstruct(x).dtype == np.float32
    for kept in (1, 5):  # between the second and the third there is no gap
        projector = directions[:kept].T @ directions[:kept]
        expected = np.clip((centred @ projector).reshape(x.shape) + x.mean(axis=0), 0, 1)
        np.testing.assert_allclose(pca.decode(pca.encode(x)[:, :kept]), expected, atol=2e-3)
