"""Two stages (Dai and Wipf 2019): a second, small VAE whose data are the codes of the first, as the prior of those.

Its task is easier than the first one's: its code u has as many dimensions as z. To sample: u from N(0, I) -> z -> face.
"""

import math

import numpy as np
from threadpoolctl import threadpool_limits

from vae_np.backend import to_cpu, to_device, xp
from vae_np.layers import Dense, LeakyReLU, Sequential, pack
from vae_np.losses import CalibratedGaussian
from vae_np.optim import Adam, learning_rate_at
from vae_np.study.priors import GaussianPrior, draw, log_sum_exp
from vae_np.vae import VAE, Reparameterization


class CodeLikelihood(CalibratedGaussian):
    """Every number of w is normal around the decoder's output itself; a pixel is around the sigmoid of a logit."""

    smallest_sigma = 0.01  # the codes have deviation 1; a sigma of 0 would make the density infinite

    def squared_error(self, mean, w):
        """Sum of (w - mean)^2, both (N, Z), and half its gradient with respect to the means."""
        error = mean - w
        return xp.vdot(error, error), error

    def log_likelihood(self, mean, w):
        """log p(w | u) of each vector in nats, with sigma as it is: (N,), in float64."""
        squares, variance = xp.square(mean - w).sum(axis=1, dtype=xp.float64), self.sigma.astype(xp.float64) ** 2
        return -(squares / variance + w.shape[1] * xp.log(2 * math.pi * variance)) / 2


class CodeVAE:
    """A VAE of dense layers for vectors w (N, Z), with codes u (N, Z) of its own; sigma follows the batch.

        w --encoder--> mu, log_var --reparameterization--> u --decoder--> mean of w, with one deviation sigma
    """

    def __init__(self, latent_dim, rng, width=256, dtype="float32"):
        self.latent_dim, self.likelihood = latent_dim, CodeLikelihood(1.0)
        self.encoder = build(latent_dim, width, 2 * latent_dim, rng, dtype)
        self.reparameterization = Reparameterization()
        self.decoder = build(latent_dim, width, latent_dim, rng, dtype)
        self.values, self.grads = pack(self.encoder.parameters + self.decoder.parameters)

    def forward(self, w, eps):
        """w and the noise eps of u -> (mean of w, mu, log_var), all (N, Z)."""
        mu, log_var = self._halves(self.encoder.forward(w))
        return self.decoder.forward(self.reparameterization.forward(mu, log_var, eps)), mu, log_var

    # The parts have the same names, and the chain rule does not ask what is in them.
    backward, _halves = VAE.backward, VAE._halves

    def loss_and_gradient(self, w, eps):
        """The two terms of the negative ELBO of w, (recon, kl), in nats per vector; its gradient is left in `grads`."""
        return VAE.loss_and_gradient(self, w, eps, self.likelihood)

    def log_weights(self, w, eps):
        """log [p(w | u) p(u) / q(u | w)] for the codes u of the noise eps: (N,); see metrics.log_importance_weights."""
        mean, mu, log_var = self.forward(w, eps)
        u = mu + xp.exp(0.5 * log_var) * eps
        log_ratio = 0.5 * (eps * eps + log_var - u * u).sum(axis=1, dtype=xp.float64)
        return self.likelihood.log_likelihood(mean, w) + log_ratio


def build(inputs, width, outputs, rng, dtype):
    """Three dense layers with LeakyReLU(0.2) between them."""
    first, second = LeakyReLU(0.2), LeakyReLU(0.2)
    return Sequential(Dense(inputs, width, rng, first.gain, dtype), first,
                      Dense(width, width, rng, second.gain, dtype), second,
                      Dense(width, outputs, rng, dtype=dtype))


class TwoStagePrior:
    """A CodeVAE on codes that a fitted Gaussian has whitened: z = colour(w), w = decoder(u) + sigma eps.

    Whitened codes have mean 0 and covariance I: all dimensions count alike, a second VAE that learned nothing would be
    that Gaussian, and what it can add is what no Gaussian has, shape beyond mean and covariance.
    """

    name = "two-stage"

    def __init__(self, values, sigma, mean, covariance):
        self.gaussian = GaussianPrior(mean, covariance)
        self.vae = CodeVAE(len(mean), np.random.default_rng(0))
        self.vae.values[...] = to_device(values)
        self.vae.likelihood = CodeLikelihood(sigma)
        self.sigma = float(sigma)
        self.arrays = {"values": values, "sigma": np.float64(sigma), **self.gaussian.arrays}

    @classmethod
    def fit(cls, mu, log_var, rng, epochs=20, batch_size=200, learning_rate=1e-3):
        """Train on codes of the posteriors, each drawn anew in every epoch; sigma is that of the whole last epoch."""
        gaussian = GaussianPrior.fit(mu, log_var, rng)
        vae = CodeVAE(mu.shape[1], rng)
        adam, count = Adam(vae.values, vae.grads), len(mu)
        steps = epochs * math.ceil(count / batch_size)
        with threadpool_limits(1, "blas"):  # products so small lose more by a second thread than they gain
            for _ in range(epochs):
                w = gaussian.whiten(draw(mu, log_var, rng)[rng.permutation(count)]).astype(np.float32)
                for start in range(0, count, batch_size):
                    batch = to_device(w[start : start + batch_size])
                    vae.loss_and_gradient(batch, to_device(rng.standard_normal(batch.shape, dtype=np.float32)))
                    adam.update(learning_rate_at(adam.step, steps, learning_rate))
                vae.likelihood.settle()
        return cls(to_cpu(vae.values), float(vae.likelihood.sigma), gaussian.mean, gaussian.covariance)

    @staticmethod
    def shapes(latent_dim):
        count = CodeVAE(latent_dim, np.random.default_rng(0)).values.size
        return {"values": ((count,), "float32"), "sigma": ((), "float64"), **GaussianPrior.shapes(latent_dim)}

    def sample(self, count, rng, temperature=1.0):
        """colour(decoder(temperature * u) + temperature * sigma * eps), u and eps from N(0, I)."""
        eps, u = np.float32(temperature) * rng.standard_normal((2, count, len(self.gaussian.mean)), dtype=np.float32)
        w = to_cpu(self.vae.decoder.forward(to_device(u)))
        return self.gaussian.colour(w + self.sigma * eps).astype(np.float32)

    def log_density(self, z, k=64):
        """A lower bound of log p(z), which is an integral over u that nobody can compute.

            log 1/k sum over k codes u from q(u | w) of p(w | u) p(u) / q(u | w)  -  log det L,   w = whiten(z)

        It rises with k, as metrics.importance_weighted_bound; the same z give the same bound.
        """
        w, rng = to_device(self.gaussian.whiten(z).astype(np.float32)), np.random.default_rng(0)
        log_weights = [self.vae.log_weights(w, to_device(rng.standard_normal(w.shape, np.float32))) for _ in range(k)]
        return log_sum_exp(to_cpu(xp.stack(log_weights, axis=1))) - math.log(k) - self.gaussian.log_determinant
