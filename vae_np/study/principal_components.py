"""Principal components: the linear autoencoder, and what a VAE has to be better than."""

import numpy as np
from tqdm import tqdm

from vae_np.disk.dataset import to_float


class PrincipalComponents:
    """The best linear autoencoder of uint8 images (N, H, W, C): mean + codes @ components.

    mean (D,), components (count, D) with orthonormal rows in order of falling variance, variances (count,), where
    D = H W C and pixels are in [0, 1]. Found by subspace iteration, which reads the images a batch at a time (Halko,
    Martinsson and Tropp 2011): multiply a random basis by the covariance and make it orthonormal again, a few times.
    """

    def __init__(self, images, count, seed=0, iterations=4):
        pixels = images.shape[1] * images.shape[2] * images.shape[3]
        # A few directions more than are asked for, so that the last ones are found as well as the first.
        basis = np.random.default_rng(seed).standard_normal((pixels, min(count + 16, pixels)), dtype=np.float32)
        self.shape = images.shape[1:]
        self.mean = sum(rows.sum(axis=0, dtype=np.float64) for rows in self._rows(images)) / len(images)
        self.mean = self.mean.astype(np.float32)
        for _ in tqdm(range(iterations), desc="principal components", leave=False):
            basis, _ = np.linalg.qr(basis)
            centred = (rows - self.mean for rows in self._rows(images))
            basis = sum(rows.T @ (rows @ basis) for rows in centred)
        directions, strengths, _ = np.linalg.svd(basis, full_matrices=False)
        self.components = np.ascontiguousarray(directions[:, :count].T)
        self.variances = strengths[:count] / len(images)

    @staticmethod
    def _rows(images, batch=1024):
        for start in range(0, len(images), batch):
            part = to_float(images[start : start + batch])
            yield part.reshape(len(part), -1)

    def encode(self, x):
        """Images (N, H, W, C) in [0, 1] -> codes (N, count)."""
        return (x.reshape(len(x), -1) - self.mean) @ self.components.T

    def decode(self, codes):
        """Codes -> images, clipped to [0, 1]. Codes with fewer columns use the first components only."""
        flat = self.mean + codes @ self.components[: codes.shape[1]]
        return np.clip(flat, 0, 1).reshape(len(codes), *self.shape)

    def reconstruct(self, x):
        """Images -> the nearest images that the components can express."""
        return self.decode(self.encode(x))
