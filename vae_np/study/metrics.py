"""How good is it? The ELBO, its ledger and a tighter bound, PSNR, SSIM, active units, and the Frechet distance."""

import math

import numpy as np

from vae_np.backend import to_cpu, to_device, xp
from vae_np.errors import InputError
from vae_np.losses import kl_per_dimension, sigmoid, sum_each
from vae_np.study.priors import log_sum_exp
from vae_np.train import to_float
from vae_np.vae import PART, require_images


def psnr(x, y):
    """Peak signal-to-noise ratio of each image in dB, -10 log10 mean (x - y)^2: x, y (N, H, W, C) in [0, 1] -> (N,)."""
    mse = np.square(x - y, dtype=np.float64).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def smooth(x, weights):
    """The weighted mean around every pixel whose window lies inside the image: (N, H, W, C) -> (N, H', W', C)."""
    size = len(weights)
    rows = sum(weight * x[:, i : x.shape[1] - size + 1 + i] for i, weight in enumerate(weights))
    return sum(weight * rows[:, :, j : x.shape[2] - size + 1 + j] for j, weight in enumerate(weights))


def ssim(x, y):
    """Structural similarity of each image, 1 for equal ones: x and y (N, H, W, C) in [0, 1] -> (N,).

    Local means, variances and the covariance under an 11-pixel Gaussian window of sigma 1.5, on each channel:

        SSIM = (2 mx my + c1) (2 cxy + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2)),  c1 = 0.01^2, c2 = 0.03^2

    averaged over the image (Wang, Bovik, Sheikh and Simoncelli 2004). A smaller image has a smaller window.
    """
    size = min(11, *x.shape[1:3])
    weights = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / 1.5) ** 2)
    weights /= weights.sum()
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = smooth(x, weights), smooth(y, weights)
    vx = smooth(x * x, weights) - mx * mx
    vy = smooth(y * y, weights) - my * my
    cxy = smooth(x * y, weights) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean(axis=(1, 2, 3))


def evaluate(model, images, likelihood, seed=0):
    """The ELBO's terms and what they are made of, means over uint8 images (N, H, W, 3), as a dictionary:

    recon, kl           in nats; recon through one code an image, by noise that depends on the seed alone
    squared_error       of the same reconstructions as recon, summed over pixels and channels
    floor               what recon would be if they were perfect
    psnr                of the reconstructions through mu, in decibels
    active_units        how many latents carry anything
    kl_per_dimension    of each latent (Z,), in nats
    """
    require_images(images)
    eps = np.random.default_rng(seed).standard_normal((len(images), model.latent_dim), dtype=model.dtype)

    def judge(model, images, eps):
        x = to_device(to_float(images))
        logits, mu, log_var = model.forward(x, to_device(eps))
        through_mu = sigmoid(model.decoder.forward(mu))
        each = -likelihood.log_likelihood(logits, x), sum_each((x - sigmoid(logits)) ** 2), perfect_recon(likelihood, x)
        return *map(to_cpu, (mu, log_var, *each)), psnr(to_float(images), to_cpu(through_mu))

    mu, log_var, *each = model.in_parts(judge, images, eps)
    recon, error, floor, decibels = (float(values.mean()) for values in each)
    kl = kl_of_codes(mu, log_var)
    return {"recon": recon, "kl": float(kl.sum(dtype=np.float64)), "squared_error": error, "floor": floor,
            "psnr": decibels, "active_units": int(active_units(mu).sum()), "kl_per_dimension": kl}


def perfect_recon(likelihood, x):
    """recon of each image x (N, H, W, C), on the device, if all its logits were log(x / (1 - x)): (N,), in nats.

    The sigmoid of these is x. For coins, their entropy is left, -sum [x log x + (1 - x) log(1 - x)].
    """
    limits = np.finfo(x.dtype)
    inside = x.clip(limits.tiny, 1 - limits.epsneg)
    return -likelihood.log_likelihood(xp.log(inside) - xp.log(1 - inside), x)


def log_importance_weights(decoder, likelihood, x, mu, log_var, eps):
    """log of p(x | z) p(z) / q(z | x) for every code z = mu + exp(log_var / 2) eps of one image, in nats.

        log p(z) - log q(z | x) = 1/2 sum over the latents [eps^2 + log_var - z^2]

    since (z - mu) / exp(log_var / 2) = eps, and the two log(2 pi) cancel. x (H, W, C) in [0, 1], mu and log_var (Z,),
    eps (k, Z) from N(0, 1) -> (k,) in float64; NumPy arrays all.
    """
    z = mu + np.exp(0.5 * log_var) * eps
    log_ratio = 0.5 * (np.square(eps, dtype=np.float64) + log_var - np.square(z, dtype=np.float64)).sum(axis=1)
    x = to_device(x[None])
    parts = [decoder.forward(to_device(z[start : start + PART])) for start in range(0, len(z), PART)]
    return np.concatenate([to_cpu(likelihood.log_likelihood(logits, x)) for logits in parts]) + log_ratio


def importance_weighted_bound(model, images, likelihood, k, seed=0):
    """A lower bound of log p(x) from k codes an image, in nats per image: a mean over uint8 images (N, H, W, 3).

        L_k = E log 1/k sum_i p(x | z_i) p(z_i) / q(z_i | x),   z_i drawn from q(z | x)

    L_1 is the ELBO. L_k rises with k, and its limit is log p(x) (Burda, Grosse and Salakhutdinov 2016). Each image has
    noise of its own, whatever the shards. Raises InputError for k < 1.
    """
    require_images(images)
    if k < 1:
        raise InputError(f"k is a number of codes and must be at least 1, not {k}")

    def bounds(model, images, numbers):
        result = []
        for x, number in zip(to_float(images), numbers, strict=True):
            (mu,), (log_var,) = model.encode(x[None])
            eps = np.random.default_rng([seed, number]).standard_normal((k, model.latent_dim), dtype=model.dtype)
            log_weights = log_importance_weights(model.decoder, likelihood, x, mu, log_var, eps)
            result.append(log_sum_exp(log_weights) - math.log(k))
        return [np.array(result)]

    return float(model.in_parts(bounds, images, np.arange(len(images)))[0].mean())


def kl_of_codes(mu, log_var):
    """losses.kl_per_dimension for NumPy arrays: mu, log_var (N, Z) -> (Z,)."""
    return to_cpu(kl_per_dimension(to_device(mu), to_device(log_var)))


def active_units(mu, threshold=0.01):
    """Which latents carry anything: variance of mu (N, Z) above threshold (Burda et al. 2016) -> bool (Z,)."""
    return mu.var(axis=0) > threshold


def frechet_distance(a, b):
    """How far the mean and covariance of vectors a (M, D) are from those of b (N, D), in their squared units:

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    If both were Gaussian, it would be the mean of |x - y|^2 when each x of a is paired with the y of b that suits it
    best (Dowson and Landau 1982). Of features of a network it is the FID (Heusel et al. 2017). Here, of codes of
    PrincipalComponents, it needs none; the unit is then squared pixel differences, summed over the image.

    It is 0 for equal sets, and above 0 for two sets of one distribution: the fewer vectors, the more. Compare sets of
    one size, with two sets of real faces as the scale. Raises InputError for arrays that do not fit, are empty, or hold
    values that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise InputError(f"expected vectors (M, D) and (N, D), one or more each, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the vectors have values that are not finite")
    m1, m2 = a.mean(axis=0), b.mean(axis=0)
    c1, c2 = (a - m1).T @ (a - m1) / len(a), (b - m2).T @ (b - m2) / len(b)
    # C1 C2 has the eigenvalues of R C2 R, which is symmetric, with R = C1^(1/2); rounding may make a 0 negative.
    strengths, axes = np.linalg.eigh(c1)
    root = axes * np.sqrt(strengths.clip(0)) @ axes.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    return max(0.0, float(np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * overlap))
