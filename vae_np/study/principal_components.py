"""Principal components: the linear autoencoder, and what a VAE has to be better than."""

import math

import numpy as np
from tqdm import tqdm

from vae_np.train import to_float


class PrincipalComponents:
    """A linear autoencoder of images of this shape (H, W, C), with pixels in [0, 1]: mean + codes @ components.

    mean (D,), D = H W C; components (count, D), orthonormal rows in order of falling variance; variances (count,).
    """

    def __init__(self, mean, components, variances, shape):
        self.mean, self.components, self.variances, self.shape = mean, components, variances, shape

    @classmethod
    def fit(cls, images, count, seed=0, iterations=4):
        """The best linear autoencoder of uint8 images (N, H, W, C) with that many components, by subspace iteration:

        multiply a random basis by the covariance and make it orthonormal again, a few times. That reads the images a
        batch at a time (Halko, Martinsson and Tropp 2011).
        """
        pixels = math.prod(images.shape[1:])
        # A few directions more than are asked for, so that the last ones are found as well as the first.
        basis = np.random.default_rng(seed).standard_normal((pixels, min(count + 16, pixels)), dtype=np.float32)
        mean = (sum(x.sum(axis=0, dtype=np.float64) for x in rows(images)) / len(images)).astype(np.float32)
        for _ in tqdm(range(iterations), desc="principal components", leave=False):
            basis, _ = np.linalg.qr(basis)
            centred = (x - mean for x in rows(images))
            basis = sum(x.T @ (x @ basis) for x in centred)
        directions, strengths, _ = np.linalg.svd(basis, full_matrices=False)
        components = np.ascontiguousarray(directions[:, :count].T)
        return cls(mean, components, strengths[:count] / len(images), images.shape[1:])

    def encode(self, x):
        """Images (N, H, W, C) in [0, 1] -> codes (N, count)."""
        return (x.reshape(len(x), -1) - self.mean) @ self.components.T

    def decode(self, codes):
        """Codes -> images, clipped to [0, 1]. Codes with fewer columns use the first components only."""
        images = self.mean + codes @ self.components[: codes.shape[1]]
        return images.clip(0, 1).reshape(len(codes), *self.shape)

    def reconstruct(self, x):
        """The nearest images that the components can express."""
        return self.decode(self.encode(x))


def rows(images, batch=1024):
    """uint8 images (N, H, W, C) -> batches of float32 rows (B, H W C), one after the other."""
    for start in range(0, len(images), batch):
        yield to_float(images[start : start + batch]).reshape(-1, math.prod(images.shape[1:]))
