"""Where new codes are drawn from: N(0, I), or a Gaussian fitted to the codes of training faces.

Training pulls codes towards the prior p(z) = N(0, I), but only so far: the aggregate posterior, the distribution of z
when x is any training face, is

    q(z) = mean over faces x of N(z; mu(x), diag exp(log_var(x)))

and the better a model reconstructs, the less q(z) looks like N(0, I). The decoder has learned from codes of q(z), so a
density that is fitted to q(z) after training gives better samples (Dai and Wipf 2019; Ghosh et al. 2020). The priors
here, Mixture in mixture.py and TwoStage in code_vae.py share one small interface:

    fit(mu, log_var, rng)                 from the posteriors of training faces, (N, Z) both, NumPy arrays
    sample(count, rng, temperature=1.0)   codes (count, Z), float32; a lower temperature keeps them nearer to a centre
    log_density(z)                        log p(z) of codes (N, Z), in nats: (N,), float64
    arrays, shapes(latent_dim)            what a checkpoint stores {name: array}, and {name: (shape, dtype)} of it

A prior is an object of the host: a few thousand codes, in float64, since sums of squares over many codes are compared.
"""

import math

import numpy as np

from vae_np.errors import InputError


def draw(mu, log_var, rng):
    """One code z of every posterior N(mu, diag exp(log_var)): (N, Z), float32."""
    return mu + np.exp(log_var / 2) * rng.standard_normal(mu.shape, dtype=np.float32)


class Standard:
    """N(0, I), the prior that the model was trained with."""

    name = "standard"

    def __init__(self, latent_dim):
        self.latent_dim = latent_dim
        self.arrays = {}

    @classmethod
    def fit(cls, mu, log_var, rng):
        """Nothing is fitted; the codes only say how many dimensions there are."""
        return cls(mu.shape[1])

    @staticmethod
    def shapes(latent_dim):
        """A checkpoint need not store anything."""
        return {}

    def sample(self, count, rng, temperature=1.0):
        """temperature * eps, eps from N(0, I)."""
        return np.float32(temperature) * rng.standard_normal((count, self.latent_dim), dtype=np.float32)

    def log_density(self, z):
        """-|z|^2 / 2 - Z log(2 pi) / 2."""
        return -0.5 * (np.square(z, dtype=np.float64).sum(axis=1) + self.latent_dim * math.log(2 * math.pi))

    def __repr__(self):
        return "Standard()"


class Gaussian:
    """N(mean, covariance): mean (Z,), covariance (Z, Z), float64.

        covariance = L L^T     whiten(z) = L^-1 (z - mean)     colour(eps) = mean + L eps

    with L the lower triangular Cholesky factor; whiten turns codes of this Gaussian into codes of N(0, I), and colour
    turns them back. Raises InputError unless the covariance is positive definite.
    """

    name = "gaussian"

    def __init__(self, mean, covariance):
        self.mean, self.covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        try:
            self.factor = np.linalg.cholesky(self.covariance)
        except np.linalg.LinAlgError:
            raise InputError("a Gaussian's covariance must be positive definite, and this one is not") from None
        self.inverse_factor = np.linalg.inv(self.factor)
        self.log_determinant = np.log(np.diagonal(self.factor)).sum()  # of L, half that of the covariance

    @classmethod
    def fit(cls, mu, log_var, rng):
        """The mean and the covariance of the aggregate posterior; no code has to be drawn for them:

            mean = mean of mu     covariance = covariance of mu + diag(mean of exp(log_var))

        the law of total variance: how far apart the clouds are, and how wide each is.
        """
        mu = np.asarray(mu, np.float64)
        mean = mu.mean(axis=0)
        variance = np.exp(np.asarray(log_var, np.float64)).mean(axis=0)
        return cls(mean, (mu - mean).T @ (mu - mean) / len(mu) + np.diag(variance))

    @staticmethod
    def shapes(latent_dim):
        return {"mean": ((latent_dim,), "float64"), "covariance": ((latent_dim, latent_dim), "float64")}

    @property
    def arrays(self):
        return {"mean": self.mean, "covariance": self.covariance}

    def whiten(self, z):
        """Codes (N, Z) -> L^-1 (z - mean)."""
        return (z - self.mean) @ self.inverse_factor.T

    def colour(self, eps):
        """Noise (N, Z) -> mean + L eps."""
        return self.mean + eps @ self.factor.T

    def sample(self, count, rng, temperature=1.0):
        """colour(temperature * eps), eps from N(0, I)."""
        eps = rng.standard_normal((count, len(self.mean)), dtype=np.float32)
        return self.colour(temperature * eps).astype(np.float32)

    def log_density(self, z):
        """-|whiten(z)|^2 / 2 - log det L - Z log(2 pi) / 2."""
        squares = (self.whiten(z) ** 2).sum(axis=1)
        return -0.5 * (squares + len(self.mean) * math.log(2 * math.pi)) - self.log_determinant

    def __repr__(self):
        return f"Gaussian({len(self.mean)} dimensions)"
