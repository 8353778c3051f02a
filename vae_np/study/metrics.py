"""How good is it? The ELBO, its ledger and a tighter bound, PSNR, SSIM, and active units."""

import math

import numpy as np

from vae_np import losses
from vae_np.backend import to_cpu, to_device
from vae_np.disk.dataset import to_float
from vae_np.errors import InputError
from vae_np.fast.workers import SHARD_SIZE
from vae_np.losses import Bernoulli, kl_divergence, sigmoid, squared_error
from vae_np.vae import require_images


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


def evaluate(workers, images, likelihood, seed=0):
    """The ELBO's terms and what they are made of, means over uint8 images (N, H, W, 3), as a dictionary:

    recon, kl           in nats
    squared_error       of the same reconstructions as recon, summed over pixels and channels
    floor               what recon would be if they were perfect
    psnr                of the reconstructions through mu, in decibels
    active_units        how many latents carry anything
    kl_per_dimension    of each latent (Z,), in nats

    recon is estimated with one noise vector an image, drawn from a generator of its own, so that it is the same noise
    every time and training's random numbers stay as they are.
    """
    require_images(images)
    count, model = len(images), workers.replicas[0]
    eps = np.random.default_rng(seed).standard_normal((count, model.latent_dim), dtype=model.dtype)
    all_mu, all_log_var = np.empty_like(eps), np.empty_like(eps)

    def work(worker, shard):
        model = workers.replicas[worker]
        on_host = to_float(images[shard])
        x = to_device(on_host)
        logits, mu, log_var = model.forward(x, to_device(eps[shard]))
        all_mu[shard], all_log_var[shard] = to_cpu(mu), to_cpu(log_var)
        recon, _ = likelihood(logits, x, batch_size=count)
        kl, _, _ = kl_divergence(mu, log_var, batch_size=count)
        error, floor = squared_error(logits, x) / count, likelihood.floor(x).sum() / count
        through_mu = to_cpu(sigmoid(model.decoder.forward(mu)))
        return float(recon), float(kl), float(error), float(floor), psnr(on_host, through_mu).sum() / count

    recon, kl, error, floor, psnrs = (float(sum(parts)) for parts in zip(*workers.map(work, count), strict=True))
    return {"recon": recon, "kl": kl, "squared_error": error, "floor": floor, "psnr": psnrs,
            "active_units": int(active_units(all_mu).sum()), "kl_per_dimension": kl_per_dimension(all_mu, all_log_var)}


def ledger(terms, likelihood, beta, image_size, latent_dim):
    """The same loss in the units of others: what `evaluate` returned as `terms` -> a dictionary of numbers.

    With D = 3 image_size^2 pixel channels and loss = recon + beta * kl, recon and kl summed as everywhere here:

    bits_...                nats / (D ln 2): bits per pixel channel. A Gaussian's density becomes the probability of an
                            8-bit grey value with + log2(255) for recon and its floor, since neighbouring values are
                            1/255 apart (as long as sigma is not smaller than that)
    floor                   what recon would be if all reconstructions were perfect
    rmse                    sqrt(squared_error / D): the typical error of a pixel channel
    sigma                   the deviation of a Gaussian that would charge as many nats for these errors,

                                recon - floor = squared_error / (2 sigma^2)

    Multiplied by 2 sigma^2, the loss is squared error + w * kl, w = 2 sigma^2 beta, up to a constant. So others, who
    write a squared error without saying what sigma is, would call this run's beta

    weight_of_sum           2 sigma^2 beta                  beside the squared error summed over pixels and channels
    weight_of_mean          2 sigma^2 beta / D              beside its mean over them
    weight_of_means         2 sigma^2 beta latent_dim / D   beside that mean, with the KL averaged over latents, too
    weight_of_mean_entropy  beta / D                        beside the mean cross-entropy (Bernoulli only)
    beta_norm               beta latent_dim / D             Higgins et al. 2017, "beta-VAE"
    """
    count = 3 * image_size**2
    excess = terms["recon"] - terms["floor"]
    variance = terms["squared_error"] / (2 * excess) if excess > 0 else math.nan
    bits, grey = 1 / (count * math.log(2)), 0 if isinstance(likelihood, Bernoulli) else math.log2(255)
    rows = {
        "recon": terms["recon"], "floor": terms["floor"], "kl": terms["kl"], "bits_recon": terms["recon"] * bits + grey,
        "bits_floor": terms["floor"] * bits + grey, "bits_kl": terms["kl"] * bits,
        "rmse": math.sqrt(terms["squared_error"] / count), "sigma": math.sqrt(variance),
        "weight_of_sum": 2 * variance * beta, "weight_of_mean": 2 * variance * beta / count,
        "weight_of_means": 2 * variance * beta * latent_dim / count, "beta_norm": beta * latent_dim / count,
    }  # fmt: skip
    return rows | ({"weight_of_mean_entropy": beta / count} if isinstance(likelihood, Bernoulli) else {})


def sigma_of_weight(weight, image_size):
    """The sigma that a loss mean squared error + weight * kl implies (at beta 1): sqrt(weight D / 2), D as in `ledger`.

    The mean is over pixels and channels in [0, 1], kl the sum over latents.
    """
    return math.sqrt(weight * 3 * image_size**2 / 2)


def ledger_table(terms, likelihood, beta, image_size, latent_dim):
    """The ledger as lines of text."""
    rows = ledger(terms, likelihood, beta, image_size, latent_dim)
    total, bits = rows["recon"] + rows["kl"], rows["bits_recon"] + rows["bits_kl"]
    lines = [
        f"{'':46s}{'nats per image':>16s}{'bits per pixel channel':>24s}",
        f"{f'reconstruction, {likelihood!r}':46s}{rows['recon']:16.1f}{rows['bits_recon']:24.4f}",
        f"{'    of which perfect ones would cost, too':46s}{rows['floor']:16.1f}{rows['bits_floor']:24.4f}",
        f"{'KL':46s}{rows['kl']:16.1f}{rows['bits_kl']:24.4f}",
        f"{'negative ELBO':46s}{total:16.1f}{bits:24.4f}",
        f"typical error of a pixel channel (0 to 1): {rows['rmse']:.4f}; a Gaussian with sigma {rows['sigma']:.4f} "
        "would charge as much for it",
        f"the same as beta {beta:g} here is this weight of the KL beside another reconstruction term:",
        f"    {'squared error, summed over pixels':64s}{rows['weight_of_sum']:12.4g}",
        f"    {'squared error, averaged over pixels and channels':64s}{rows['weight_of_mean']:12.4g}",
        f"    {'the same, and the KL averaged over latents, too':64s}{rows['weight_of_means']:12.4g}",
    ]
    if "weight_of_mean_entropy" in rows:
        lines += [f"    {'cross-entropy, summed over pixels':64s}{beta:12.4g}",
                  f"    {'cross-entropy, averaged over pixels and channels':64s}{rows['weight_of_mean_entropy']:12.4g}"]
    lines.append(f"and {rows['beta_norm']:.4g} is beta_norm (Higgins et al. 2017), beta latents / pixel channels")
    return "\n".join(lines)


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
    require_images(images)
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
    """losses.kl_per_dimension for NumPy arrays: mu, log_var (N, Z) -> (Z,)."""
    return to_cpu(losses.kl_per_dimension(to_device(mu), to_device(log_var)))


def active_units(mu, threshold=0.01):
    """Which latent dimensions carry anything: variance of mu over images above threshold, (N, Z) -> bool (Z,).

    A dimension that the decoder ignores has mu = 0 for every image (Burda, Grosse and Salakhutdinov 2016). It takes
    some ten images to see a variance; a single one has none.
    """
    return mu.var(axis=0) > threshold
