"""The loss of a model in the units of other programs: what lessons 03 and 04 print beside it."""

import math

from vae_np.losses import Bernoulli


def ledger(terms, likelihood, beta, image_size, latent_dim):
    """loss = recon + beta * kl in the units of others: what `evaluate` returned as `terms` -> a dictionary of numbers.

    With D = 3 image_size^2 pixel channels:

    bits_...                nats / (D ln 2): bits per pixel channel; recon and floor of a Gaussian + log2(255), since
                            grey values are 1/255 apart: its density becomes a probability (if sigma > 1/255)
    rmse                    sqrt(squared_error / D): the typical error of a pixel channel
    sigma                   of a Gaussian that would charge as much: recon - floor = squared_error / (2 sigma^2)

    Multiplied by 2 sigma^2, the loss is squared error + w * kl, w = 2 sigma^2 beta, up to a constant. So others, who
    write a squared error without saying what sigma is, would call this run's beta

    weight_of_sum           2 sigma^2 beta                  beside the squared error summed over pixels and channels
    weight_of_mean          2 sigma^2 beta / D              beside its mean over them
    weight_of_means         2 sigma^2 beta latent_dim / D   beside that mean, with the KL averaged over latents, too
    weight_of_mean_entropy  beta / D                        beside the mean cross-entropy (Bernoulli only)
    beta_norm               beta latent_dim / D             Higgins et al. 2017, "beta-VAE"
    """
    count, coins = 3 * image_size**2, isinstance(likelihood, Bernoulli)
    recon, kl, floor, error = (terms[name] for name in ("recon", "kl", "floor", "squared_error"))
    variance = error / (2 * (recon - floor)) if recon > floor else math.nan
    weight = 2 * variance * beta
    bits, grey = 1 / (count * math.log(2)), 0 if coins else math.log2(255)
    rows = {
        "recon": recon, "floor": floor, "kl": kl,
        "bits_recon": recon * bits + grey, "bits_floor": floor * bits + grey, "bits_kl": kl * bits,
        "rmse": math.sqrt(error / count), "sigma": math.sqrt(variance), "beta_norm": beta * latent_dim / count,
        "weight_of_sum": weight, "weight_of_mean": weight / count, "weight_of_means": weight * latent_dim / count,
    }  # fmt: skip
    return {**rows, "weight_of_mean_entropy": beta / count} if coins else rows


def sigma_of_weight(weight, image_size):
    """The sigma that a loss mean squared error + weight * kl implies at beta 1; the mean is over D as in `ledger`."""
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
