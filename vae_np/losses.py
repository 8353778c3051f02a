"""The two terms of the ELBO, in nats per image, each with its gradient.

    log p(x)  >=  E over z from q(z | x) of log p(x | z)  -  KL(q(z | x) || N(0, I))       the ELBO
    loss      =   recon + beta * kl                                                        minus that, if beta is 1

recon estimates the first term with one z for each image. Everything is summed over pixels and channels (or latents) and
averaged over the batch, never anything else: so a loss is the ELBO whatever the size of image, code and batch.
"""

import math

from vae_np.backend import Replaceable, xp
from vae_np.errors import InputError, real_number


def sigmoid(logits):
    """1 / (1 + exp(-logits)), written so that no logit overflows: sigmoid(l) = (1 + tanh(l / 2)) / 2."""
    return 0.5 * (1 + xp.tanh(0.5 * logits))


def softplus(logits):
    """log(1 + exp(l)), written so that no logit overflows: softplus(l) = max(l, 0) + log(1 + exp(-|l|))."""
    return xp.maximum(logits, 0) + xp.log(1 + xp.exp(-xp.abs(logits)))


def sum_each(terms):
    """Sum over all pixels and channels of each image: (N, H, W, C) -> (N,), in float64, as differences are small."""
    return terms.sum(axis=(1, 2, 3), dtype=xp.float64)


class Likelihood(Replaceable):
    """p(x | z) of images x (N, H, W, C) in [0, 1], given the decoder's logits of the same shape.

    Calling one with a whole batch gives the loss: (logits, x) -> (recon, gradient with respect to the logits), where
    recon = -1/N sum_n log p(x_n | z_n). log_likelihood judges images one by one, and changes nothing.
    """

    sigma = None  # the standard deviation of a pixel channel, where there is one

    def follow(self, recon, x):
        """To be called after each step, with the recon of its images x: what is calibrated is calibrated here."""

    def __repr__(self):
        sigma = "" if self.sigma is None else f"sigma={float(self.sigma):.4g}"
        return f"{self.name.capitalize()}({sigma})"


class Bernoulli(Likelihood):
    """Every channel of a pixel is a coin with probability sigmoid(l): the binary cross-entropy between x and it.

        recon     = 1/N sum [softplus(l) - x l]       since log sigmoid(l) = l - softplus(l)
        d recon   = 1/N (sigmoid(l) - x)              the sigmoid is the derivative of softplus

    Kingma and Welling (2014) use it for black and white pixels. For x strictly between 0 and 1 it is no normalised
    density (Loaiza-Ganem and Cunningham 2019), but a common loss all the same.
    """

    name = "bernoulli"

    def __call__(self, logits, x):
        """The loss of a batch, and its gradient; see Likelihood."""
        recon = (softplus(logits) - x * logits).sum() / len(x)
        return recon, (sigmoid(logits) - x) / len(x)

    def log_likelihood(self, logits, x):
        """log p(x | z) of each image in nats: logits (N, H, W, C), x the same or (1, H, W, C) -> (N,), in float64."""
        return sum_each(x * logits - softplus(logits))


class Gaussian(Likelihood):
    """Every channel of a pixel is normal around m = sigmoid(l) with one standard deviation sigma.

        recon     = 1/(2N) sum [(x - m)^2 / sigma^2 + log(2 pi sigma^2)]
        d recon   = 1/N (m - x) m (1 - m) / sigma^2       m (1 - m) is the derivative of the sigmoid

    recon is the negative logarithm of a density, so it may be below 0. Raises InputError unless sigma > 0.
    """

    name = "gaussian"

    def __init__(self, sigma=0.1):
        self.sigma = xp.asarray(real_number(sigma, "sigma", above_0=True))  # 0-d, as a sigma that is computed

    def squared_error(self, logits, x):
        """Sum of (x - m)^2 over the batch, and half its gradient with respect to the logits."""
        mean = sigmoid(logits)
        error = mean - x
        return (error * error).sum(), error * mean * (1 - mean)

    def __call__(self, logits, x):
        """The loss of a batch, and its gradient; see Likelihood."""
        squares, dlogits = self.squared_error(logits, x)
        variance = self.sigma.astype(x.dtype) ** 2
        recon = (squares / variance + x.size * xp.log(2 * math.pi * variance)) / (2 * len(x))
        return recon, dlogits / (len(x) * variance)

    def log_likelihood(self, logits, x):
        """log p(x | z) of each image in nats: logits (N, H, W, C), x the same or (1, H, W, C) -> (N,), in float64."""
        variance = self.sigma.astype(xp.float64) ** 2
        return -(sum_each((x - sigmoid(logits)) ** 2) / variance + x[0].size * xp.log(2 * math.pi * variance)) / 2


class CalibratedGaussian(Gaussian):
    """A Gaussian whose sigma follows the errors: sigma^2 is a running mean of (x - m)^2, over some ten batches.

        sigma^2  <-  sigma^2 + 0.1 [mean of (x - m)^2 - sigma^2]      after each step

    Where d recon / d sigma = 0, sigma^2 is the mean of (x - m)^2: so nobody has to choose (sigma-VAE, Rybkin,
    Daniilidis and Levine 2021, who take the mean over the batch at hand; a running mean is known before the batch is).
    The gradient is that of a Gaussian with the sigma of the moment.
    """

    name = "calibrated"
    # Where the model is perfect, sigma would be 0 and recon minus infinity; 8-bit images are rounded to 1/255 anyway.
    smallest_sigma = 1 / 255

    def __init__(self, sigma=0.3):
        super().__init__(sigma)

    def follow(self, recon, x):
        """Take a step towards the errors of images x, which their recon tells: solve its formula for (x - m)^2."""
        variance = self.sigma**2
        error = variance * (2 * recon * len(x) / x.size - xp.log(2 * math.pi * variance))
        self.sigma = xp.maximum(xp.sqrt(variance + 0.1 * (error - variance)), self.smallest_sigma)

    def __repr__(self):
        return f"CalibratedGaussian(sigma={float(self.sigma):.4g})"


LIKELIHOODS = {likelihood.name: likelihood for likelihood in (Bernoulli, Gaussian, CalibratedGaussian)}


def likelihood_of(name, sigma=None):
    """The likelihood of that name. Raises InputError if there is none, or if it has no sigma and is given one."""
    if name not in LIKELIHOODS or (sigma is not None and name == Bernoulli.name):
        raise InputError(f"there is no likelihood {name!r}" + (f" with sigma {sigma}" if name in LIKELIHOODS else ""))
    return LIKELIHOODS[name]() if sigma is None else LIKELIHOODS[name](sigma)


def kl_divergence(mu, log_var):
    """KL(N(mu, exp(log_var)) || N(0, 1)), summed over latents: mu, log_var (N, Z).

        kl        = 1/N sum [mu^2 + exp(log_var) - 1 - log_var] / 2
        d mu      = 1/N mu
        d log_var = 1/N (exp(log_var) - 1) / 2

    Returns (kl, dmu, dlog_var). Kingma and Welling 2014, appendix B.
    """
    n, var = len(mu), xp.exp(log_var)
    kl = 0.5 * (mu * mu + var - 1 - log_var).sum() / n
    return kl, mu / n, (var - 1) / (2 * n)


def kl_per_dimension(mu, log_var):
    """KL divergence of each latent in nats, averaged over the batch: mu, log_var (N, Z) -> (Z,)."""
    return 0.5 * (mu * mu + xp.exp(log_var) - 1 - log_var).mean(axis=0)


def free_bits(kl, nats):
    """The KL term with `nats` free of charge in each latent (Kingma et al. 2016): kl (Z,), means over the whole batch.

        term      = sum over the latents j of max(nats, kl_j)
        d term    = sum of weight_j d kl_j,    weight_j = 1 where kl_j > nats, else 0

    A latent that says less than `nats` is not pushed to say even less, so it does not die while the decoder has yet to
    learn what to do with it. Returns (term, weight), weight (Z,).
    """
    return xp.maximum(kl, nats).sum(), (kl > nats).astype(kl.dtype)
