"""Signs of trouble in a training history, each with what helps."""

from vae_np.losses import CalibratedGaussian

FEW = 0.05  # of the latents: fewer active ones are a collapse even if a handful survives
PATIENCE = 3  # epochs; validation wavers by itself from one to the next
WORSE = 0.1  # of what training gained meanwhile; a plateau wavers by less
JUMP = 1.1  # sigma falls while a model learns; noise moves it by a few per cent
WIDEST = 0.5  # of numbers between 0 and 1, none deviate more


def warnings(history, settings, latent_dim):
    """What is wrong after the newest epoch: a list of lines, empty if nothing is. history is run.trainer.Trainer's."""
    return [*collapse(history, settings, latent_dim), *diverging_sigma(history, settings), *upward(history)]


def collapse(history, settings, latent_dim):
    """The posterior equals the prior for nearly all latents, so that the decoder draws without a code."""
    row = history[-1]
    # While beta is still rising the code costs little, and a KL that still grows has only begun to say something.
    if row["epoch"] == 1 or row["beta"] < settings.beta or row["val_kl"] > 1.1 * history[-2]["val_kl"]:
        return
    # No active one at all with a KL above 1 is a matter of too few validation images: one alone has no variance.
    if row["val_kl"] < 1 or 0 < row["active_units"] < min(latent_dim, max(2, FEW * latent_dim)):
        yield (f"the posterior has collapsed: {row['active_units']} of {latent_dim} latents are active, KL "
               f"{row['val_kl']:.2f} nats; try a lower --beta, or a likelihood that charges more for errors "
               "(--likelihood calibrated, or a smaller --sigma); --free-bits or a longer --beta-warmup help where it "
               "only gave up early")


def diverging_sigma(history, settings):
    """Calibration loses its hold: sigma grows although training goes on, or has nowhere left to go."""
    if settings.likelihood != CalibratedGaussian.name:
        return
    before, sigma = history[-2:][0]["sigma"], history[-1]["sigma"]  # of the first epoch, both are its own
    if sigma < 1.01 * CalibratedGaussian.smallest_sigma:
        yield (f"sigma is at its smallest, {sigma:.4f}, the step between grey values: the model has learned the "
               "images by heart; try more images")
    elif sigma > JUMP * before:
        yield f"sigma has risen from {before:.4f} to {sigma:.4f}: errors grow; try a lower --lr"
    elif sigma > WIDEST:
        yield f"sigma is {sigma:.4f}, more than grey values from 0 to 1 deviate from anything; try a lower --lr"


def upward(history):
    """Validation turns upward while training still falls: the model memorises."""
    rows = [row for row in history if row["beta"] == history[-1]["beta"]]  # losses of one beta compare
    last, best = rows[-1], min(rows, key=lambda row: row["val_loss"])
    gained, lost = best["loss"] - last["loss"], last["val_loss"] - best["val_loss"]
    if best in rows[:-PATIENCE] and gained > 0 and lost >= WORSE * gained:
        yield (f"validation was best after epoch {best['epoch']} ({best['val_loss']:.1f}, now {last['val_loss']:.1f}) "
               "while training still improves: the model memorises; try more images, fewer --epochs, or smaller "
               "--channels")
