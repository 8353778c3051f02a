"""Where new codes are drawn from: N(0, I), or a Gaussian fitted to the codes of training faces.

Training pulls codes towards the prior p(z) = N(0, I), but only so far: the aggregate posterior, the distribution of z
when x is any training face, is

    q(z) = mean over faces x of N(z; mu(x), diag exp(log_var(x)))

and the better a model reconstructs, the less q(z) looks like N(0, I). The decoder has learned from codes of q(z), so a
density that is fitted to q(z) after training gives better samples (Dai and Wipf 2019; Ghosh et al. 2020). All priors
(see also mixture.py and flow.py) take NumPy arrays, return them, and have

    fit(mu, log_var, rng)                 from the posteriors of training faces, (N, Z) both, NumPy arrays
    sample(count, rng, temperature=1.0)   codes (count, Z), float32; a lower temperature keeps them nearer to a centre
    log_density(z)                        log p(z) of codes (N, Z), in nats: (N,), float64
    arrays, shapes(latent_dim)            what a checkpoint stores {name: array}, and {name: (shape, dtype)} of it
"""

import importlib
import math

import numpy as np

from vae_np.errors import InputError

# The kinds by the names that checkpoints know them by, and where each is defined.
PRIORS = {"standard": "priors:StandardPrior", "gaussian": "priors:GaussianPrior", "mixture": "mixture:MixturePrior",
          "flow": "flow:FlowPrior"}


def prior_kind(name):
    """The class of a prior by its name in PRIORS; its file is imported only now, since few models have such a prior."""
    file, kind = PRIORS[name].split(":")
    return getattr(importlib.import_module(f"vae_np.study.{file}"), kind)


def draw(mu, log_var, rng):
    """One code z of every posterior N(mu, diag exp(log_var)): (N, Z), float32."""
    return mu + np.exp(log_var / 2) * rng.standard_normal(mu.shape, dtype=np.float32)


def log_sum_exp(terms):
    """log of the sum of exp(terms) over the last axis. The largest is taken out first, since exp(-800) is 0."""
    largest = terms.max(axis=-1, keepdims=True)
    return (largest + np.log(np.exp(terms - largest).sum(axis=-1, keepdims=True)))[..., 0]


class GaussianPrior:
    """N(mean, covariance): mean (Z,), covariance (Z, Z), float64.

        covariance = L L^T     whiten(z) = L^-1 (z - mean)     colour(eps) = mean + L eps

    L is the lower triangular Cholesky factor. Raises InputError unless the covariance is positive definite.
    """

    name = "gaussian"

    def __init__(self, mean, covariance):
        self.mean, self.covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        self.arrays = {"mean": self.mean, "covariance": self.covariance}
        try:
            self.factor = np.linalg.cholesky(self.covariance)
        except np.linalg.LinAlgError:
            raise InputError("a Gaussian's covariance must be positive definite, and this one is not") from None
        self.inverse_factor = np.linalg.inv(self.factor)
        self.log_determinant = np.log(np.diagonal(self.factor)).sum()  # of L, half that of the covariance

    @classmethod
    def fit(cls, mu, log_var, rng):
        """The mean and the covariance of the aggregate posterior, by the law of total variance:

            mean = mean of mu     covariance = covariance of mu + diag(mean of exp(log_var))
        """
        mean, variance = mu.mean(axis=0, dtype=np.float64), np.exp(log_var, dtype=np.float64).mean(axis=0)
        return cls(mean, (mu - mean).T @ (mu - mean) / len(mu) + np.diag(variance))

    @staticmethod
    def shapes(latent_dim):
        return {"mean": ((latent_dim,), "float64"), "covariance": ((latent_dim, latent_dim), "float64")}

    def whiten(self, z):
        """Codes of this Gaussian (N, Z) -> codes of N(0, I)."""
        return (z - self.mean) @ self.inverse_factor.T

    def colour(self, eps):
        """Codes of N(0, I) (N, Z) -> codes of this Gaussian."""
        return self.mean + eps @ self.factor.T

    def sample(self, count, rng, temperature=1.0):
        """colour(temperature * eps), eps from N(0, I)."""
        eps = rng.standard_normal((count, len(self.mean)), dtype=np.float32)
        return self.colour(temperature * eps).astype(np.float32)

    def log_density(self, z):
        """-|whiten(z)|^2 / 2 - log det L - Z log(2 pi) / 2."""
        squares = (self.whiten(z) ** 2).sum(axis=1)
        return -0.5 * (squares + len(self.mean) * math.log(2 * math.pi)) - self.log_determinant


class StandardPrior(GaussianPrior):
    """N(0, I), the prior that the model was trained with: nothing is fitted, and a checkpoint need not store it."""

    name = "standard"

    def __init__(self, latent_dim):
        super().__init__(np.zeros(latent_dim), np.eye(latent_dim))
        self.latent_dim, self.arrays = latent_dim, {}

    @classmethod
    def fit(cls, mu, log_var, rng):
        return cls(mu.shape[1])

    @staticmethod
    def shapes(latent_dim):
        return {}
