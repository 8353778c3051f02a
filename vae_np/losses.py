"""The two terms of the ELBO, in nats per image, each with its gradient.

Everything is summed over pixels and channels (or latents) and averaged over the batch, never anything else, so that
loss = recon + beta * kl means the same at every image size. A shard of a larger batch passes the size of that batch as
`batch_size`: its terms and gradients then add up with those of the other shards.
"""

import math

from vae_np.backend import on_gpu, xp
from vae_np.errors import InputError
from vae_np.fast import gpu as kernels


def sigmoid(logits):
    """1 / (1 + exp(-logits)), written so that no logit overflows: sigmoid(l) = (1 + tanh(l / 2)) / 2."""
    y = xp.tanh(0.5 * logits)
    y += 1
    y *= 0.5
    return y


def softplus(logits):
    """log(1 + exp(l)), written so that no logit overflows: softplus(l) = max(l, 0) + log(1 + exp(-|l|)).

    Not log1p, which takes four times as long: where it differs from log, the result is about the rounding of 1, and
    what it is added up with is much larger.
    """
    y = xp.exp(-xp.abs(logits))
    y += 1
    xp.log(y, out=y)
    y += xp.maximum(logits, 0)
    return y


def sum_each(terms):
    """Sum over all pixels and channels of each image: (N, H, W, C) -> (N,).

    In float64: these sums are thousands of nats, and what is asked of them are differences of a few.
    """
    return terms.sum(axis=(1, 2, 3), dtype=xp.float64)


@on_gpu(kernels.cross_entropy)
def cross_entropy(logits, x, scale):
    """scale * sum [softplus(l) - x l], and its gradient scale * (sigmoid(l) - x): both are stable for any logit l.

    sigmoid(l) = exp(l - softplus(l)), where softplus is at hand already.
    """
    log_normalizer = softplus(logits)
    total = (log_normalizer - x * logits).sum() * scale
    dlogits = xp.exp(logits - log_normalizer)
    dlogits -= x
    dlogits *= scale
    return total, dlogits


class Bernoulli:
    """Every channel of a pixel is a coin with probability sigmoid(l): the binary cross-entropy between x and it.

        recon     = 1/N sum [softplus(l) - x l]
        d recon   = 1/N (sigmoid(l) - x)

    Kingma and Welling (2014) use it for black and white pixels. For x strictly between 0
    and 1 it is not the density of a real number (Loaiza-Ganem and Cunningham 2019), but a common loss all the same.
    """

    name = "bernoulli"
    sigma = None

    def __call__(self, logits, x, batch_size=None):
        """Logits and images x in [0, 1], both (N, H, W, C) -> (recon, gradient with respect to the logits)."""
        return cross_entropy(logits, x, 1 / (batch_size or len(x)))

    def log_likelihood(self, logits, x):
        """log p(x | z) of each image in nats: logits (N, H, W, C), x the same or (1, H, W, C) -> (N,), in float64."""
        return sum_each(x * logits - softplus(logits))

    def floor(self, x):
        """recon of each image, if its reconstruction is perfect: (N, H, W, C) -> (N,), in nats.

        Not 0 but the entropy of the coins, -sum [x log x + (1 - x) log(1 - x)], unless every x is 0 or 1.
        """
        tiny = xp.finfo(x.dtype).tiny  # 0 log 0 is 0
        return -sum_each(x * xp.log(xp.maximum(x, tiny)) + (1 - x) * xp.log(xp.maximum(1 - x, tiny)))

    def __repr__(self):
        return "Bernoulli()"


class Gaussian:
    """Every channel of a pixel is normal around m = sigmoid(l) with one standard deviation sigma.

        recon     = 1/N sum [(x - m)^2 / (2 sigma^2) + log sigma + log(2 pi) / 2]
        d recon   = 1/N (m - x) / sigma^2 * m (1 - m)

    recon is the negative logarithm of a density, so it may be below 0. Raises InputError unless sigma > 0.
    """

    name = "gaussian"

    def __init__(self, sigma=0.1):
        if not sigma > 0:
            raise InputError(f"sigma is a standard deviation and must be above 0, not {sigma}")
        self.sigma = float(sigma)

    def __call__(self, logits, x, batch_size=None):
        """Logits and images x in [0, 1], both (N, H, W, C) -> (recon, gradient with respect to the logits)."""
        n = batch_size or len(x)
        mean = sigmoid(logits)
        error = mean - x
        recon = (xp.vdot(error, error) / (2 * self.sigma**2) + self._log_normalizer(x.size)) / n
        dlogits = error
        dlogits *= mean
        dlogits *= 1 - mean
        dlogits /= n * self.sigma**2
        return recon, dlogits

    def log_likelihood(self, logits, x):
        """log p(x | z) of each image in nats: logits (N, H, W, C), x the same or (1, H, W, C) -> (N,), in float64."""
        error = sigmoid(logits)
        error -= x
        error *= error
        return -sum_each(error) / (2 * self.sigma**2) - self._log_normalizer(error[0].size)

    def floor(self, x):
        """recon of each image, if its reconstruction is perfect, (N, H, W, C) -> (N,): what the density costs alone."""
        return xp.full(len(x), self._log_normalizer(x[0].size))

    def _log_normalizer(self, count):
        log = math.log if isinstance(self.sigma, float) else xp.log
        return count * (log(self.sigma) + 0.5 * math.log(2 * math.pi))

    def __repr__(self):
        return f"{type(self).__name__}(sigma={float(self.sigma):.4g})"


class CalibratedGaussian(Gaussian):
    """A Gaussian whose sigma is the best one for the batch at hand: sigma^2 = mean of (x - m)^2 over the batch.

    This is sigma-VAE (Rybkin, Daniilidis and Levine 2021). At the optimum the derivative of recon with respect to sigma
    is 0, so the gradient with respect to the logits is the one of a Gaussian whose sigma is held fixed at that value.
    Sigma depends on the whole batch: call `calibrate` before the likelihood. On held-out images leave it as training
    left it; to fit it to the images that it is judged on would flatter.
    """

    name = "calibrated"
    # Where the model is perfect, sigma would be 0 and recon minus infinity; 8-bit images are rounded to 1/255 anyway.
    smallest_sigma = 1 / 255

    def __init__(self, sigma=0.2):
        super().__init__(sigma)

    def calibrate(self, squared_error, count):
        """Set sigma from the sum of (x - m)^2 over a batch, a 0-d array, and the number of its terms.

        sigma is then a 0-d array too, so that a GPU need not be waited for; float() of it is the number.
        """
        self.sigma = xp.maximum(xp.sqrt(squared_error / count), self.smallest_sigma)


LIKELIHOODS = {likelihood.name: likelihood for likelihood in (Bernoulli, Gaussian, CalibratedGaussian)}


def likelihood_of(name, sigma=None):
    """The likelihood of a name, with a sigma where one is given.

    Raises InputError for an unknown name, and for a sigma of Bernoulli, which has none.
    """
    if name not in LIKELIHOODS or (sigma is not None and name == Bernoulli.name):
        raise InputError(f"there is no likelihood {name!r}" + (f" with sigma {sigma}" if name in LIKELIHOODS else ""))
    return LIKELIHOODS[name]() if sigma is None else LIKELIHOODS[name](sigma)


def squared_error(logits, x):
    """Sum of (x - sigmoid(logits))^2 over the whole batch: what CalibratedGaussian.calibrate asks for."""
    error = sigmoid(logits)
    error -= x
    return xp.vdot(error, error)


def kl_divergence(mu, log_var, batch_size=None):
    """KL divergence from N(mu, exp(log_var)) to N(0, 1), summed over latents: mu, log_var (N, Z).

        kl        = 1/N sum [mu^2 + exp(log_var) - 1 - log_var] / 2
        d mu      = 1/N mu
        d log_var = 1/N (exp(log_var) - 1) / 2

    Returns (kl, dmu, dlog_var). Kingma and Welling 2014, appendix B.
    """
    n = batch_size or len(mu)
    var = xp.exp(log_var)
    kl = 0.5 * (mu * mu + var - 1 - log_var).sum() / n
    return kl, mu / n, (var - 1) / (2 * n)


def kl_per_dimension(mu, log_var):
    """KL divergence of each latent in nats, averaged over the batch: mu, log_var (N, Z) -> (Z,)."""
    return 0.5 * (mu * mu + xp.exp(log_var) - 1 - log_var).mean(axis=0)


def free_bits(kl, nats):
    """The KL term with `nats` free of charge in each latent (Kingma et al. 2016): kl (Z,), means over the whole batch.

        term         = sum over the latents of max(nats, kl_j)
        d term / d theta = sum of weight_j d kl_j / d theta,    weight_j = 1 where kl_j > nats, else 0

    A latent that says less than `nats` is not pushed to say even less, so it does not die while the decoder has yet to
    learn what to do with it. Returns (term, weight), weight (Z,).
    """
    return xp.maximum(kl, nats).sum(), (kl > nats).astype(kl.dtype)
