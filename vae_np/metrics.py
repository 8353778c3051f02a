"""How good is it? The ELBO and a tighter bound, PSNR, SSIM, active units, and principal components as the yardstick."""

import numpy as np
from tqdm import tqdm

from vae_np.backend import to_cpu, to_device
from vae_np.data import to_float
from vae_np.errors import InputError
from vae_np.losses import kl_divergence, sigmoid
from vae_np.parallel import SHARD_SIZE


def psnr(x, y):
    """Peak signal-to-noise ratio of each image in decibels: 10 log10(1 / MSE), x and y (N, H, W, C) in [0, 1] -> (N,).

    MSE is the mean of (x - y)^2 over an image. Halving the error adds 6 dB; equal images give infinity.
    """
    mse = np.square(x - y, dtype=np.float64).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def gaussian_window(size=11, sigma=1.5):
    """The weights (size,) of a Gaussian, summing to 1."""
    weights = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return weights / weights.sum()


def smooth(x, weights):
    """The weighted mean around every pixel whose window lies inside the image: (N, H, W, C) -> (N, H', W', C)."""
    size = len(weights)
    rows = sum(weight * x[:, i : x.shape[1] - size + 1 + i] for i, weight in enumerate(weights))
    return sum(weight * rows[:, :, j : x.shape[2] - size + 1 + j] for j, weight in enumerate(weights))


def ssim(x, y):
    """Structural similarity of each image, 1 for equal ones: x and y (N, H, W, C) in [0, 1] -> (N,).

    Local means, variances and the covariance under an 11-pixel Gaussian window of sigma 1.5, on each channel:

        SSIM = (2 mx my + c1) (2 cxy + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2)),  c1 = 0.01^2, c2 = 0.03^2

    averaged over the image (Wang, Bovik, Sheikh and Simoncelli 2004). Images of less than 11 pixels take a smaller
    window.
    """
    weights = gaussian_window(min(11, *x.shape[1:3]))
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = smooth(x, weights), smooth(y, weights)
    vx = smooth(x * x, weights) - mx * mx
    vy = smooth(y * y, weights) - my * my
    cxy = smooth(x * y, weights) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean(axis=(1, 2, 3))


def _require_images(images):
    if not len(images):
        raise InputError("there are no images to take a mean over")


def evaluate(workers, images, likelihood, seed=0):
    """The ELBO's terms and the PSNR on uint8 images (N, H, W, 3): {"recon", "kl", "psnr"}, means over the images.

    recon is estimated with one noise vector an image, drawn from a generator of its own, so that it is the same noise
    every time and training's random numbers stay as they are. PSNR is that of the reconstruction through mu.
    """
    _require_images(images)
    model = workers.replicas[0]
    eps = np.random.default_rng(seed).standard_normal((len(images), model.latent_dim), dtype=model.dtype)

    def work(worker, shard):
        model = workers.replicas[worker]
        on_host = to_float(images[shard])
        x = to_device(on_host)
        logits, mu, log_var = model.forward(x, to_device(eps[shard]))
        recon, _ = likelihood(logits, x, batch_size=len(images))
        kl, _, _ = kl_divergence(mu, log_var, batch_size=len(images))
        through_mu = to_cpu(sigmoid(model.decoder.forward(mu)))
        return float(recon), float(kl), psnr(on_host, through_mu).sum() / len(images)

    recon, kl, psnrs = zip(*workers.map(work, len(images)), strict=True)
    return {"recon": sum(recon), "kl": sum(kl), "psnr": float(sum(psnrs))}


def log_importance_weights(decoder, likelihood, x, mu, log_var, eps):
    """log of p(x | z) p(z) / q(z | x) for every code z = mu + exp(log_var / 2) eps of one image, in nats.

        log p(z) - log q(z | x) = 1/2 sum over the latents [eps^2 + log_var - z^2]

    since (z - mu) / exp(log_var / 2) = eps, and the two log(2 pi) cancel. x (H, W, C) in [0, 1], mu and log_var (Z,),
    eps (k, Z) from N(0, 1) -> (k,) in float64; NumPy arrays all. Decodes in chunks, so that k may be thousands.
    """
    z = mu + np.exp(0.5 * log_var) * eps
    log_ratio = 0.5 * (np.square(eps, dtype=np.float64) + log_var - np.square(z, dtype=np.float64)).sum(axis=1)
    x = to_device(x[None])
    log_likelihood = np.empty(len(z))
    for start in range(0, len(z), SHARD_SIZE):
        part = slice(start, start + SHARD_SIZE)
        log_likelihood[part] = to_cpu(likelihood.log_likelihood(decoder.forward(to_device(z[part])), x))
    return log_likelihood + log_ratio


def log_mean_exp(log_weights):
    """log of the mean of exp(log_weights), (k,) -> float. The largest is taken out first, since exp(-6000) is 0."""
    largest = log_weights.max()
    return float(largest + np.log(np.exp(log_weights - largest).mean()))


def importance_weighted_bound(workers, images, likelihood, k, seed=0):
    """A lower bound of log p(x) from k codes an image, in nats per image: a mean over uint8 images (N, H, W, 3).

        L_k = E log 1/k sum_i p(x | z_i) p(z_i) / q(z_i | x),   z_i drawn from q(z | x)

    L_1 is the ELBO. L_k rises with k, and its limit is log p(x) (Burda, Grosse and Salakhutdinov 2016). Every image is
    handled alone and has a noise generator of its own, so that the result depends neither on threads nor on shards; a
    larger k adds codes to the same first ones. Raises InputError for k < 1.
    """
    _require_images(images)
    if k < 1:
        raise InputError(f"k is a number of codes and must be at least 1, not {k}")

    def work(worker, shard):
        model = workers.replicas[worker]
        bounds = []
        for i in range(shard.start, shard.stop):
            x = to_float(images[i : i + 1])
            h = to_cpu(model.encoder.forward(to_device(x)))[0]
            mu, log_var = h[: model.latent_dim], h[model.latent_dim :]
            eps = np.random.default_rng([seed, i]).standard_normal((k, model.latent_dim), dtype=model.dtype)
            log_weights = log_importance_weights(model.decoder, likelihood, x[0], mu, log_var, eps)
            bounds.append(log_mean_exp(log_weights))
        return bounds

    return float(np.concatenate(workers.map(work, len(images))).mean())


def kl_per_dimension(mu, log_var):
    """KL divergence of each latent dimension in nats, averaged over images: mu, log_var (N, Z) -> (Z,)."""
    return 0.5 * (mu * mu + np.exp(log_var) - 1 - log_var).mean(axis=0)


def active_units(mu, threshold=0.01):
    """Which latent dimensions carry anything: variance of mu over images above threshold, (N, Z) -> bool (Z,).

    A dimension that the decoder ignores has mu = 0 for every image (Burda, Grosse and Salakhutdinov 2016).
    """
    return mu.var(axis=0) > threshold


class PrincipalComponents:
    """The best linear autoencoder of uint8 images (N, H, W, C): mean + codes @ components.

    mean (D,), components (count, D) with orthonormal rows in order of falling variance, variances (count,), where
    D = H W C and pixels are in [0, 1]. Found by subspace iteration, which reads the images a batch at a time (Halko,
    Martinsson and Tropp 2011): multiply a random basis by the covariance and make it orthonormal again, a few times.
    """

    def __init__(self, images, count, seed=0, iterations=4):
        pixels = images.shape[1] * images.shape[2] * images.shape[3]
        # A few directions more than are asked for, so that the last ones are found as well as the first.
        basis = np.random.default_rng(seed).standard_normal((pixels, min(count + 16, pixels)), dtype=np.float32)
        self.shape = images.shape[1:]
        self.mean = sum(rows.sum(axis=0, dtype=np.float64) for rows in self._rows(images)) / len(images)
        self.mean = self.mean.astype(np.float32)
        for _ in tqdm(range(iterations), desc="principal components", leave=False):
            basis, _ = np.linalg.qr(basis)
            centred = (rows - self.mean for rows in self._rows(images))
            basis = sum(rows.T @ (rows @ basis) for rows in centred)
        directions, strengths, _ = np.linalg.svd(basis, full_matrices=False)
        self.components = np.ascontiguousarray(directions[:, :count].T)
        self.variances = strengths[:count] / len(images)

    @staticmethod
    def _rows(images, batch=1024):
        for start in range(0, len(images), batch):
            part = to_float(images[start : start + batch])
            yield part.reshape(len(part), -1)

    def encode(self, x):
        """Images (N, H, W, C) in [0, 1] -> codes (N, count)."""
        return (x.reshape(len(x), -1) - self.mean) @ self.components.T

    def decode(self, codes):
        """Codes -> images, clipped to [0, 1]. Codes with fewer columns use the first components only."""
        flat = self.mean + codes @ self.components[: codes.shape[1]]
        return np.clip(flat, 0, 1).reshape(len(codes), *self.shape)

    def reconstruct(self, x):
        """Images -> the nearest images that the components can express."""
        return self.decode(self.encode(x))
