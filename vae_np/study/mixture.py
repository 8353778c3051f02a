"""A mixture of Gaussians as the prior, fitted to codes of training faces by expectation-maximisation."""

import math

import numpy as np

from vae_np.errors import InputError
from vae_np.study.priors import GaussianPrior, draw, log_sum_exp


class MixturePrior:
    """sum over k of weights_k N(means_k, covariances_k): weights (K,), means (K, Z), covariances (K, Z, Z), float64.

    fit maximises the likelihood of codes z_n by expectation-maximisation (Dempster, Laird and Rubin 1977; Bishop 2006,
    chapter 9). For q_nk >= 0 with sum_k q_nk = 1, any guess which component code n comes from, Jensen's inequality says

        log sum_k weights_k N_k(z_n)  >=  sum_k q_nk log [weights_k N_k(z_n) / q_nk]

        E step    r_nk = weights_k N_k(z_n) / sum_j weights_j N_j(z_n)     makes the two sides equal at q = r
        M step    maximises the right side for these r: with n_k = sum_n r_nk,
                  means_k = sum_n r_nk z_n / n_k,   scatter_k = sum_n r_nk (z_n - means_k)(z_n - means_k)^T

    and so neither step lets the left side fall. A covariance of 160 dimensions has 12,880 numbers, more than a
    component has codes, and one of few codes could shrink onto them without end. So each is given `shrinkage` imagined
    codes with the covariance C of all codes, and one for its weight:

        weights_k = (n_k + 1) / (N + K)     covariances_k = (scatter_k + shrinkage C) / (n_k + shrinkage)

    These maximise the likelihood times a Dirichlet and inverse-Wishart prior (Fraley and Raftery 2007). What never
    falls, and is in `rise` for every E step, in nats per code, is 1/N of

        sum_n log p(z_n) + sum_k [log weights_k - shrinkage KL(N(0, C) || N(0, covariances_k))]
    """

    name = "mixture"

    def __init__(self, weights, means, covariances):
        if not (len(weights) == len(means) == len(covariances) and np.min(weights) > 0
                and math.isclose(np.sum(weights), 1, rel_tol=1e-6)):
            raise InputError("a mixture needs weights above 0 whose sum is 1, each with a mean and a covariance")
        self.weights, self.means, self.covariances = weights, means, covariances
        self.arrays = {"weights": weights, "means": means, "covariances": covariances}
        self.components = [GaussianPrior(mean, covariance) for mean, covariance in zip(means, covariances, strict=True)]

    @classmethod
    def fit(cls, mu, log_var, rng, components=10, shrinkage=2000.0, tolerance=0.02, max_steps=100):
        """Fit to one code of every posterior, until `rise` grows by less than tolerance in a step."""
        codes, whole = draw(mu, log_var, rng).astype(np.float64), GaussianPrior.fit(mu, log_var, rng)
        k = min(components, len(codes))
        starts = codes[distant(whole.whiten(codes), k, rng)]
        mixture, rise = cls(np.full(k, 1 / k), starts, np.stack([whole.covariance] * k)), []
        for _ in range(max_steps):
            joint = mixture.log_joint(codes)
            total = log_sum_exp(joint)
            rise.append((total.sum() + mixture.log_penalty(whole, shrinkage)) / len(codes))
            if len(rise) > 1 and rise[-1] - rise[-2] < tolerance:
                break
            mixture = cls.maximised(codes, np.exp(joint - total[:, None]), whole.covariance, shrinkage)
        mixture.rise = rise
        return mixture

    @classmethod
    def maximised(cls, codes, responsibilities, covariance, shrinkage):
        """The M step: codes (N, Z), r (N, K), and the covariance (Z, Z) of the imagined codes -> the next mixture."""
        counts = responsibilities.sum(axis=0)
        means = responsibilities.T @ codes / np.maximum(counts, 1e-300)[:, None]  # 0, if there is no code at all
        scatters = [((codes - mean) * r[:, None]).T @ (codes - mean)
                    for mean, r in zip(means, responsibilities.T, strict=True)]
        covariances = (scatters + shrinkage * covariance) / (counts + shrinkage)[:, None, None]
        return cls((counts + 1) / (len(codes) + len(counts)), means, covariances)

    def log_penalty(self, whole, shrinkage):
        """The second sum above, with C = L L^T the covariance of `whole`.

        For S = M M^T, KL(N(0, C) || N(0, S)) = 1/2 [|M^-1 L|^2 - Z + log det S - log det C].
        """
        divergence = 0.0
        for component in self.components:
            trace = np.square(component.inverse_factor @ whole.factor).sum()  # of S^-1 C
            divergence += 0.5 * (trace - len(whole.mean)) + component.log_determinant - whole.log_determinant
        return np.log(self.weights).sum() - shrinkage * divergence

    @staticmethod
    def shapes(latent_dim):
        return {"weights": ((None,), "float64"), "means": ((None, latent_dim), "float64"),
                "covariances": ((None, latent_dim, latent_dim), "float64")}

    def log_joint(self, z):
        """log [weights_k N_k(z_n)] of every code and component: (N, K)."""
        return np.stack([component.log_density(z) for component in self.components], axis=1) + np.log(self.weights)

    def sample(self, count, rng, temperature=1.0):
        """A component k for each code, with probability weights_k, then means_k + temperature L_k eps."""
        eps = temperature * rng.standard_normal((count, self.means.shape[1]), dtype=np.float32)
        which = rng.choice(len(self.weights), count, p=self.weights / self.weights.sum())
        z = np.empty(eps.shape, np.float32)
        for k, component in enumerate(self.components):
            z[which == k] = component.colour(eps[which == k])
        return z

    def log_density(self, z):
        """log sum_k weights_k N_k(z), by log-sum-exp."""
        return log_sum_exp(self.log_joint(z))


def distant(points, count, rng):
    """Indices of `count` points far from each other, to start from: k-means++ (Arthur and Vassilvitskii 2007).

    Each is drawn with a probability that is proportional to its squared distance from the nearest drawn before.
    """
    chosen, squares = [rng.integers(len(points))], np.inf
    for _ in range(count - 1):
        squares = np.minimum(squares, ((points - points[chosen[-1]]) ** 2).sum(axis=1) + 1e-9)  # points may be equal
        chosen.append(rng.choice(len(points), p=squares / squares.sum()))
    return chosen
