"""Two stages (Dai and Wipf 2019): a second, small VAE whose data are the codes of the first, as the prior of those.

The first VAE finds a code for every face, the second learns what the codes are distributed like. It has an easier task:
it need not compress, since its own code u has as many dimensions as z. To sample: u from N(0, I) -> z -> face.
"""

import math

import numpy as np
from threadpoolctl import threadpool_limits

from vae_np.backend import to_cpu, to_device, xp
from vae_np.errors import InputError
from vae_np.layers import Dense, LeakyReLU, Sequential, pack
from vae_np.losses import kl_divergence
from vae_np.optim import Adam, learning_rate_at
from vae_np.study.priors import Gaussian, draw
from vae_np.vae import Reparameterization

WIDTH = 256
SMALLEST_SIGMA = 0.01  # the codes have deviation 1; a sigma of 0 would make the density infinite


class CodeVAE:
    """A VAE of dense layers for vectors w (N, Z), with codes u (N, Z) of its own.

        w --encoder--> mu, log_var --reparameterization--> u --decoder--> mean of w, with one deviation sigma

    All parameters are views into the flat array `values`, their gradients into `grads`; sigma follows the batch.
    """

    def __init__(self, latent_dim, rng, width=WIDTH, dtype="float32"):
        self.latent_dim, self.dtype, self.sigma = latent_dim, np.dtype(dtype), 1.0
        self.encoder = build(latent_dim, width, 2 * latent_dim, rng, dtype)
        self.reparameterization = Reparameterization()
        self.decoder = build(latent_dim, width, latent_dim, rng, dtype)
        self.values, self.grads = pack(self.encoder.parameters + self.decoder.parameters)

    def encode(self, w):
        """w (N, Z) -> mu, log_var of q(u | w), (N, Z) each."""
        h = self.encoder.forward(w)
        return h[:, : self.latent_dim], h[:, self.latent_dim :]

    def loss_and_gradient(self, w, eps):
        """The negative ELBO of w, given the noise eps of u (N, Z), with the best sigma; its gradient is left in grads.

            recon = 1/N sum (w - mean)^2 / (2 sigma^2) + Z [log sigma + log(2 pi) / 2]
            sigma^2 = mean of (w - mean)^2 over the batch and the dimensions

        At this sigma the derivative of recon with respect to it is 0, and the gradient is that of a fixed sigma:
        d mean = (mean - w) / (N sigma^2) (Rybkin, Daniilidis and Levine 2021). Returns (recon, kl) in nats per code.
        """
        mu, log_var = self.encode(w)
        error = self.decoder.forward(self.reparameterization.forward(mu, log_var, eps)) - w
        squares = xp.vdot(error, error)
        self.sigma = xp.maximum(xp.sqrt(squares / error.size), SMALLEST_SIGMA)
        recon = squares / (2 * len(w) * self.sigma**2) + self.latent_dim * log_normalizer(xp.log(self.sigma))
        kl, dmu, dlog_var = kl_divergence(mu, log_var)
        dmu_through_u, dlog_var_through_u = self.reparameterization.backward(
            self.decoder.backward(error / (len(w) * self.sigma**2)))
        dh = xp.concatenate([dmu + dmu_through_u, dlog_var + dlog_var_through_u], axis=1)
        self.encoder.backward_parameters(dh)
        return recon, kl

    def log_weights(self, w, eps):
        """log [p(w | u) p(u) / q(u | w)] for the codes u that the noise eps (N, Z) leads to: (N,), float64, in nats.

        log p(u) - log q(u | w) = 1/2 sum over the dimensions [eps^2 + log_var - u^2], as in metrics.py.
        """
        mu, log_var = self.encode(w)
        u = self.reparameterization.forward(mu, log_var, eps)
        errors = xp.square(self.decoder.forward(u) - w).sum(axis=1, dtype=xp.float64)
        log_ratio = 0.5 * (eps * eps + log_var - u * u).sum(axis=1, dtype=xp.float64)
        return log_ratio - errors / (2 * self.sigma**2) - self.latent_dim * log_normalizer(math.log(self.sigma))


def build(inputs, width, outputs, rng, dtype):
    """Three dense layers with LeakyReLU(0.2) between them."""
    first, second = LeakyReLU(0.2), LeakyReLU(0.2)
    return Sequential(Dense(inputs, width, rng, gain=first.gain, dtype=dtype), first,
                      Dense(width, width, rng, gain=second.gain, dtype=dtype), second,
                      Dense(width, outputs, rng, dtype=dtype))


def log_normalizer(log_sigma):
    """log of sigma sqrt(2 pi): what one dimension of a normal density is divided by."""
    return log_sigma + 0.5 * math.log(2 * math.pi)


class TwoStage:
    """A CodeVAE on codes that a fitted Gaussian has whitened: z = colour(w), w = decoder(u) + sigma eps.

    Whitened codes have mean 0 and covariance I, so that all dimensions count alike, and a second VAE that learned
    nothing would be that Gaussian. What it can add is what a Gaussian cannot have: shape beyond mean and covariance.
    """

    name = "two-stage"

    def __init__(self, values, sigma, mean, covariance):
        if not sigma > 0:
            raise InputError(f"sigma is a standard deviation and must be above 0, not {sigma}")
        self.gaussian = Gaussian(mean, covariance)
        self.vae = CodeVAE(len(mean), np.random.default_rng(0))
        self.vae.values[...] = to_device(values)
        self.vae.sigma = float(sigma)

    @classmethod
    def fit(cls, mu, log_var, rng, epochs=20, batch_size=200, learning_rate=1e-3):
        """Train on codes of the posteriors, each drawn anew in every epoch; sigma is that of the whole last epoch."""
        gaussian = Gaussian.fit(mu, log_var, rng)
        vae = CodeVAE(mu.shape[1], rng)
        adam, count = Adam(vae.values, vae.grads), len(mu)
        total = epochs * math.ceil(count / batch_size)
        with threadpool_limits(1, "blas"):  # products so small lose more by a second thread than they gain
            for _ in range(epochs):
                w = gaussian.whiten(draw(mu, log_var, rng)[rng.permutation(count)]).astype(np.float32)
                variance = 0.0
                for start in range(0, count, batch_size):
                    batch = to_device(w[start : start + batch_size])
                    vae.loss_and_gradient(batch, to_device(rng.standard_normal(batch.shape, dtype=np.float32)))
                    adam.update(learning_rate_at(adam.step, total, learning_rate))
                    variance += vae.sigma**2 * (len(batch) / count)
        return cls(to_cpu(vae.values), math.sqrt(float(variance)), gaussian.mean, gaussian.covariance)

    @staticmethod
    def shapes(latent_dim):
        count = CodeVAE(latent_dim, np.random.default_rng(0)).values.size
        return {"values": ((count,), "float32"), "sigma": ((), "float64"), **Gaussian.shapes(latent_dim)}

    @property
    def arrays(self):
        return {"values": to_cpu(self.vae.values), "sigma": np.float64(self.vae.sigma), **self.gaussian.arrays}

    def sample(self, count, rng, temperature=1.0):
        """colour(decoder(temperature * u) + temperature * sigma * eps), u and eps from N(0, I)."""
        eps, u = np.float32(temperature) * rng.standard_normal((2, count, len(self.gaussian.mean)), dtype=np.float32)
        w = to_cpu(self.vae.decoder.forward(to_device(u)))
        return self.gaussian.colour(w + self.vae.sigma * eps).astype(np.float32)

    def log_density(self, z, k=64):
        """A lower bound of log p(z), which is an integral over u that nobody can compute.

            log 1/k sum over k codes u from q(u | w) of p(w | u) p(u) / q(u | w)  -  log det L,   w = whiten(z)

        Its mean over the draws of u is below log p(z), and rises to it with k (Burda, Grosse and Salakhutdinov 2016).
        The draws come from a generator of their own: the same z, the same bound.
        """
        w, rng = to_device(self.gaussian.whiten(z).astype(np.float32)), np.random.default_rng(0)
        total = xp.full(len(z), -xp.inf)
        for _ in range(k):
            total = xp.logaddexp(total, self.vae.log_weights(w, to_device(rng.standard_normal(w.shape, np.float32))))
        return to_cpu(total) - math.log(k) - self.gaussian.log_determinant

    def __repr__(self):
        return f"TwoStage({self.vae.values.size:,} parameters, sigma={self.vae.sigma:.3g})"
