"""Signs of trouble in a training history, each with what helps."""

import math

from vae_np.losses import CalibratedGaussian

FEW = 0.05  # of the latents: fewer active ones are a collapse even if a handful survives
PATIENCE = 3  # epochs; validation wavers by itself from one to the next
WORSE = 0.1  # of what training gained meanwhile; a plateau wavers by less
JUMP = 1.1  # sigma falls while a model learns; noise moves it by a few per cent
WIDEST = 0.5  # of numbers between 0 and 1, none deviate more


def warnings(history, settings, latent_dim):
    """What is wrong after the newest epoch: a list of lines, empty if nothing is. history is train.Trainer's."""
    checks = collapse(history, settings, latent_dim), diverging_sigma(history, settings), upward(history)
    return [line for line in checks if line]


def collapse(history, settings, latent_dim):
    """The posterior equals the prior for nearly all latents, so that the decoder draws without a code."""
    row = history[-1]
    # While beta is still rising the code costs little, and a KL that still grows has only begun to say something.
    if row["epoch"] == 1 or row["beta"] < settings.beta or row["val_kl"] > 1.1 * history[-2]["val_kl"]:
        return None
    # No active one at all with a KL above 1 is a matter of too few validation images: one alone has no variance.
    few = 0 < row["active_units"] < min(latent_dim, max(2, FEW * latent_dim))
    if row["val_kl"] >= 1 and not few:
        return None
    return (f"the posterior has collapsed: {row['active_units']} of {latent_dim} latents are active, KL "
            f"{row['val_kl']:.2f} nats; try a lower --beta, or a likelihood that charges more for errors (--likelihood "
            "calibrated, or a smaller --sigma); --free-bits or a longer --beta-warmup help where it only gave up early")


def diverging_sigma(history, settings):
    """Calibration loses its hold: sigma grows although training goes on, or has nowhere left to go."""
    if settings.likelihood != CalibratedGaussian.name:
        return None
    sigma, before = history[-1]["sigma"], history[-2]["sigma"] if len(history) > 1 else math.inf
    if sigma < 1.01 * CalibratedGaussian.smallest_sigma:
        return (f"sigma is at its smallest, {sigma:.4f}, the step between grey values: the model has learned the "
                "images by heart; try more images")
    if sigma > JUMP * before:
        return f"sigma has risen from {before:.4f} to {sigma:.4f}: errors grow; try a lower --lr"
    if sigma > WIDEST:
        return f"sigma is {sigma:.4f}, more than grey values from 0 to 1 deviate from anything; try a lower --lr"
    return None


def upward(history):
    """Validation turns upward while training still falls: the model memorises."""
    rows = [row for row in history if row["beta"] == history[-1]["beta"]]  # losses of one beta compare
    best = min(range(len(rows)), key=lambda i: rows[i]["val_loss"])
    gained, lost = rows[best]["loss"] - rows[-1]["loss"], rows[-1]["val_loss"] - rows[best]["val_loss"]
    if len(rows) - 1 - best < PATIENCE or gained <= 0 or lost < WORSE * gained:
        return None
    return (f"validation was best after epoch {rows[best]['epoch']} ({rows[best]['val_loss']:.1f}, now "
            f"{rows[-1]['val_loss']:.1f}) while training still improves: the model memorises; try more images, fewer "
            "--epochs, or smaller --channels")
