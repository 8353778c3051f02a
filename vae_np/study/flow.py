"""A flow as the prior: noise that is carried to where the codes are, at a velocity that a network has learned.

Take noise z0 from N(0, I), a code z1, and the arc that leads from one to the other as an angle a grows from 0 to pi/2:

    z_a = cos(a) z0 + sin(a) z1        its velocity   dz_a / da = cos(a) z1 - sin(a) z0

Arcs cross, and a point z does not say which one it is on. So let all that is there move at the mean velocity of the
arcs through it, v(z, a) = E[dz_a / da | z_a = z]. It carries as much probability through every point as the arcs do
(the continuity equation), and so z is distributed as z_a at every angle: at 0 as the noise, at pi/2 as the codes. Least
squares finds means, and v with them:

    loss = E |v(z_a, a) - dz_a / da|^2        over z0 from N(0, I), codes z1, and a uniform between 0 and pi/2

This is flow matching (Lipman et al. 2023; rectified flow, Liu et al. 2023; on arcs, Albergo and Vanden-Eijnden 2023).
For codes from N(0, I) there is nothing to learn: z_a and its velocity are independent then, v is 0, and the loss is 1 a
dimension. So codes are whitened first, and a network that gives 0 is the fitted Gaussian; what its loss falls below 1
is what no Gaussian knows. (On straight ways, z_t = (1 - t) z0 + t z1, v would not be 0, and the loss pi/2 = 1.571.)
"""

import math

import numpy as np
from tqdm import tqdm

from vae_np.backend import to_cpu, to_device, xp
from vae_np.fast.cores import one_blas_thread
from vae_np.layers import Dense, LeakyReLU, Sequential, pack
from vae_np.optim import Adam, learning_rate_at
from vae_np.study.priors import GaussianPrior, StandardPrior, draw

WAVES = 16  # sines of the angle, and as many cosines, that the network sees
RIGHT_ANGLE = math.pi / 2  # where noise has become a code
FEW = 8  # dimensions; in as few, a trace is taken element by element


class Velocity:
    """v(z, a) of codes z (N, Z) at angles a (N, 1), or at one for all: two dense layers with max(0, x) between them.

    The second layer has weights 0 at first, so that v is 0. All parameters are views into the flat array `values`,
    their gradients into `grads`.
    """

    def __init__(self, latent_dim, rng, width=1024, dtype="float32"):
        self.latent_dim, self.frequencies = latent_dim, xp.arange(1, WAVES + 1, dtype=dtype)
        self.network = Sequential(Dense(latent_dim + 2 * WAVES, width, rng, dtype=dtype), LeakyReLU(0.0),
                                  Dense(width, latent_dim, rng, gain=0.0, dtype=dtype))
        self.values, self.grads = pack(self.network.parameters)

    def forward(self, z, angle):
        """The velocities (N, Z)."""
        waves = xp.broadcast_to(angle * self.frequencies, (len(z), WAVES))
        return self.network.forward(xp.concatenate([z, xp.sin(waves), xp.cos(waves)], axis=1))

    def backward(self, dv):
        """Given dL/dv for the v of the last forward, overwrite `grads` and return dL/dz."""
        return self.network.backward(dv)[:, : self.latent_dim]

    def loss_and_gradient(self, z0, z1, angle):
        """The loss, summed over dimensions and averaged over arcs (N of them); its gradient goes to `grads`."""
        cos, sin = xp.cos(angle), xp.sin(angle)
        error = self.forward(cos * z0 + sin * z1, angle) - (cos * z1 - sin * z0)
        self.backward(2 / len(error) * error)
        return xp.vdot(error, error) / len(error)

    def divergence(self, z, angle, probes):
        """v (N, Z) and its divergence (N, 1), the trace of J = dv/dz: the sum over probes e of e^T J e.

        e^T J is what backward makes of e; J itself is never there.
        """
        v = self.forward(z, angle)
        return v, sum((e * self.backward(e)).sum(axis=1, keepdims=True) for e in probes)


def probes_for(shape, rng):
    """Vectors e (count, N, Z) for codes of this shape (N, Z): the sum of e^T J e is the trace of J, or an estimate.

    In few dimensions they are the Z unit vectors, each of which gives an element of the diagonal. Otherwise it is one
    vector of random signs: e_i J_ij e_j is J_ii where i = j, and 0 on average elsewhere (Hutchinson 1990).
    """
    if shape[1] <= FEW:
        return to_device(np.broadcast_to(np.eye(shape[1], dtype=np.float32)[:, None], (shape[1], *shape)))
    return to_device(rng.choice(np.float32([-1, 1]), (1, *shape)))


def heun(slope, y, start, stop, steps):
    """Follow dy/dx = slope(y, x) from x = start to stop, each step at the mean of the slopes at its two ends.

    Where a step ends is guessed by the slope at its start (Heun's method): half the step, a quarter of the error.
    """
    h = (stop - start) / steps
    for x in (start + i * h for i in range(steps)):
        first = slope(y, x)
        y = y + h / 2 * (first + slope(y + h * first, x + h))
    return y


class FlowPrior:
    """The density of z = colour(z_a at pi/2), where z_a starts from N(0, I) at 0 and moves at v; colour undoes whiten.

    Where velocities drift apart it thins out, by the change of variables (Chen et al. 2018; Grathwohl et al. 2019):

        log p(z) = log N(z_0; 0, I) - integral over a of div v(z_a, a) - log det L        see GaussianPrior for L
    """

    name = "flow"

    def __init__(self, values, mean, covariance):
        self.gaussian = GaussianPrior(mean, covariance)
        self.velocity = Velocity(len(mean), np.random.default_rng(0))
        self.velocity.values[...] = to_device(values)
        self.arrays = {"values": values, **self.gaussian.arrays}

    @classmethod
    def fit(cls, mu, log_var, rng, steps=None, batch_size=256, learning_rate=2e-3, decay=1.0):
        """Learn from codes of the posteriors, chosen and drawn anew in every step.

        Few would be learned by heart: two of them make for a step, up to 2,400, unless `steps` says how many; and each
        step shrinks the parameters by rate * decay (AdamW, Loshchilov and Hutter 2019).
        """
        steps = steps or min(2400, math.ceil(len(mu) / 2))
        gaussian, velocity = GaussianPrior.fit(mu, log_var, rng), Velocity(mu.shape[1], rng)
        adam = Adam(velocity.values, velocity.grads)
        with one_blas_thread():
            for step in tqdm(range(steps), desc="flow", unit="step", leave=False):
                rows = rng.integers(len(mu), size=batch_size)
                z1 = gaussian.whiten(draw(mu[rows], log_var[rows], rng)).astype(np.float32)
                z0 = rng.standard_normal(z1.shape, dtype=np.float32)
                angle = RIGHT_ANGLE * rng.random((batch_size, 1), dtype=np.float32)
                velocity.loss_and_gradient(to_device(z0), to_device(z1), to_device(angle))
                rate = learning_rate_at(step, steps, learning_rate, warmup_steps=100)
                velocity.values *= 1 - rate * decay
                adam.update(rate)
        return cls(to_cpu(velocity.values), gaussian.mean, gaussian.covariance)

    @staticmethod
    def shapes(latent_dim):
        count = Velocity(latent_dim, np.random.default_rng(0)).values.size
        return {"values": ((count,), "float32"), **GaussianPrior.shapes(latent_dim)}

    def sample(self, count, rng, temperature=1.0, steps=50):
        """temperature * eps, eps from N(0, I), carried from 0 to pi/2 and coloured."""
        eps = np.float32(temperature) * rng.standard_normal((count, len(self.gaussian.mean)), dtype=np.float32)
        with one_blas_thread():
            z = heun(self.velocity.forward, to_device(eps), 0.0, RIGHT_ANGLE, steps)
        return self.gaussian.colour(to_cpu(z)).astype(np.float32)

    def log_density(self, z, steps=50):
        """log p(z), estimated in more than a few dimensions; the same z give the same."""
        z, rng = to_device(self.gaussian.whiten(z).astype(np.float32)), np.random.default_rng(0)

        def slope(state, angle):  # of z_a and, in the last column, of the integral of div v up to a
            z = state[:, :-1]
            return xp.concatenate(self.velocity.divergence(z, angle, probes_for(z.shape, rng)), axis=1)

        with one_blas_thread():
            end = heun(slope, xp.concatenate([z, 0 * z[:, :1]], axis=1), RIGHT_ANGLE, 0.0, steps)
        z0, integral = np.split(to_cpu(end).astype(np.float64), [-1], axis=1)  # from pi/2 to 0: minus the one above
        return StandardPrior(z.shape[1]).log_density(z0) + integral[:, 0] - self.gaussian.log_determinant
