"""Training: shuffled batches; for each, noise, forward, loss, backward, clip, step.

A training that is shown, measured on held-out images, saved and resumed is in run/trainer.py; this is the algorithm.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from vae_np.backend import to_device, xp
from vae_np.errors import InputError, real_number, whole_number
from vae_np.losses import LIKELIHOODS, free_bits, likelihood_of
from vae_np.optim import Adam, beta_at, clip_gradient, cyclical_beta_at, learning_rate_at

ABOVE_0 = "epochs", "batch_size", "learning_rate", "max_gradient_norm", "sigma", "limit"  # other numbers may be 0


@dataclass
class Settings:
    """How to train; the defaults are the ones that lesson 03 explains. Raises InputError for what makes no sense."""

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 4e-3  # the peak, reached after warmup_steps
    final_rate_fraction: float = 0.05  # of the peak: where the cosine of the learning rate ends
    warmup_steps: int = 100  # a tenth of all steps at the most
    beta: float = 1.0
    beta_warmup_epochs: float = 0.0
    beta_cycles: int = 0  # if above 0, they take the place of the warm-up
    free_bits: float = 0.0  # nats, of each latent
    mirror: bool = True  # each image, or not, at random
    likelihood: str = "calibrated"
    sigma: float | None = None  # of the Gaussian likelihood
    # Twice what is usual at 64x64, calibrated: one bad batch cannot throw the model off its way. Norms go with
    # 1 / sigma^2; for Bernoulli, 500 to 5,000 are usual.
    max_gradient_norm: float = 1e4
    seed: int = 0
    limit: int | None = None  # what is given to Training are the first `limit` images only

    def __post_init__(self):
        if self.likelihood not in LIKELIHOODS:
            raise InputError(f"likelihood {self.likelihood!r} is unknown; choose one of {', '.join(LIKELIHOODS)}")
        if self.sigma is not None and self.likelihood != "gaussian":
            raise InputError(f"sigma is for the gaussian likelihood, not for {self.likelihood}")
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type in (bool, str) or value is field.default is None:
                continue
            above_0, whole = name in ABOVE_0, field.type in (int, int | None)
            setattr(self, name, whole_number(value, name, int(above_0)) if whole else real_number(value, name, above_0))
        self.mirror = bool(self.mirror)


def to_float(images):
    """uint8 (N, H, W, 3) in 0..255 -> float32 in [0, 1], the range that the model and the losses expect."""
    return images * np.float32(1 / 255)


def batches(images, batch_size, order, rng=None):
    """Yield float32 batches (B, H, W, 3), on the device, of uint8 images in this order; the last may be smaller.

    With a NumPy generator, each image is mirrored or not, at random: the mirror image of a face is a face, too.
    """
    for start in range(0, len(order), batch_size):
        # Sorted indices read a file from front to back; the order inside a batch does not change its loss.
        x = to_device(images[np.sort(order[start : start + batch_size])])
        if rng is not None:
            x = xp.where(to_device(rng.random(len(x)) < 0.5)[:, None, None, None], x[:, :, ::-1], x)
        yield to_float(x)


class Training:
    """What changes while a model learns from uint8 images (N, H, W, 3): parameters, Adam's moments, random state."""

    def __init__(self, model, images, settings):
        self.model, self.images, self.settings = model, images, settings
        self.steps_per_epoch = math.ceil(len(images) / settings.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        if 2 * settings.beta_cycles > self.total_steps:
            raise InputError(f"{settings.beta_cycles} cycles of beta take two steps each or more, and there are "
                             f"{self.total_steps} steps; try fewer")
        self.likelihood = likelihood_of(settings.likelihood, settings.sigma)
        self.adam = Adam(model.values, model.grads)
        # Not the seed alone: the weights were drawn from that stream, and the noise must not repeat them.
        self.rng = np.random.default_rng([settings.seed, 1])

    def schedules(self, step):
        """The learning rate and beta of a step."""
        s = self.settings
        rate = learning_rate_at(step, self.total_steps, s.learning_rate, s.warmup_steps, s.final_rate_fraction)
        if s.beta_cycles:
            return rate, cyclical_beta_at(step, self.total_steps, s.beta, s.beta_cycles)
        return rate, beta_at(step, s.beta, s.beta_warmup_epochs * self.steps_per_epoch)

    def step(self, x):
        """One step of Adam on images x (B, H, W, 3) in [0, 1], on the device.

        Returns (recon, kl, loss, norm): the norm is the gradient's, the others are in nats per image.
        """
        rate, beta = self.schedules(self.adam.step)
        eps = to_device(self.rng.standard_normal((len(x), self.model.latent_dim), dtype=self.model.dtype))
        term, weights = None, 1.0
        if self.settings.free_bits:  # a latent is beyond its free bits when its mean over the batch is
            term, weights = free_bits(self.model.latent_kl(x), self.settings.free_bits)
        recon, kl = self.model.loss_and_gradient(x, eps, self.likelihood, beta * weights)
        self.likelihood.follow(recon, x)
        norm = clip_gradient(self.model.grads, self.settings.max_gradient_norm)
        self.adam.update(rate)
        return recon, kl, recon + beta * (kl if term is None else term), norm

    def steps(self, order=None):
        """An epoch: go once through the images in a new random order, or in `order`; yield what each step returns."""
        order = self.rng.permutation(len(self.images)) if order is None else order
        for x in batches(self.images, self.settings.batch_size, order, self.rng if self.settings.mirror else None):
            yield self.step(x)
