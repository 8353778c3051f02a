"""Charts of single lessons: the history and the curves of a training, bars, an animation."""

import csv

from PIL import Image

from vae_np.disk.files import replacing
from vae_np.study import pictures


def write_history(path, history):
    """Write the history as a table of comma-separated values, a row an epoch."""
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=history[0])
        table.writeheader()
        table.writerows(history)


def plot_losses(path, history):
    """Draw what run.trainer.Trainer's history (a list of dicts) says over epochs.

    Above: total, reconstruction and KL, training beside validation, and PSNR. Below, how KL is spread over the latents,
    how many of them are active, the norm of the gradient, and sigma, if there is one.
    """
    chart, axes = pictures.figure(rows=2, columns=4, width=3.8, height=3.2)

    def panel(ax, title, unit, curves):
        for (label, name), style in zip(curves.items(), ("o-", "s--", "^:", "v-."), strict=False):
            ax.plot([row["epoch"] for row in history], [row[name] for row in history], style, label=label)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        if len(curves) > 1:
            ax.legend(fontsize="small", loc="lower right" if title == "KL" else "upper right")  # where no curve is

    for ax, name, title in zip(axes[0, :3], ("loss", "recon", "kl"), ("total", "reconstruction", "KL"), strict=True):
        panel(ax, title, "nats per image", {"training": name, "validation": f"val_{name}"})
    panel(axes[0, 3], "PSNR, validation", "dB", {"PSNR": "val_psnr"})
    panel(axes[1, 0], "KL of a latent, validation", "nats",
          {"largest": "val_kl_max", "90% are below": "val_kl_p90", "median": "val_kl_median",
           "10% are below": "val_kl_p10"})
    panel(axes[1, 1], "active latents, validation", "number", {"active": "active_units"})
    panel(axes[1, 2], "norm of the gradient", "mean over the epoch", {"norm": "gradient_norm"})
    if history[-1]["sigma"] is None:
        axes[1, 3].axis("off")
    else:
        panel(axes[1, 3], "sigma", "of a pixel channel", {"sigma": "sigma"})
    for ax in axes[1]:
        ax.set_ylim(bottom=0)
    axes[1, 0].set_ylim(top=1.5 * axes[1, 0].get_ylim()[1])  # room for the legend
    pictures.save_figure(path, chart)


def plot_directions(path, panels):
    """Draw the share of each principal component that is not learned yet, a curve an epoch.

    panels is {title: a list of arrays (K,), one after each epoch}: of the component's variance, what is left in errors.
    """
    chart, axes = pictures.figure(columns=len(panels))
    for ax, (title, epochs) in zip(axes[0], panels.items(), strict=True):
        for number, shares in enumerate(epochs, start=1):
            ax.plot(range(1, len(shares) + 1), shares, color=str(0.8 * (1 - number / len(epochs))),
                    label=f"after epoch {number}")
        ax.set(title=title, xlabel="principal component", ylabel="share not learned", xscale="log", ylim=(0, 1.3))
        ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    pictures.save_figure(path, chart)


def bars(path, values, unit, mark):
    """Draw a bar for every entry of values {name: number}, the first on top, along a logarithmic axis.

    unit is what the axis says; mark is a number to compare with, drawn as a line, and what the line stands for.
    """
    chart, axes = pictures.figure(width=8.0, height=1.2 + 0.4 * len(values))
    ax, (level, meaning) = axes[0, 0], mark
    left = min(values.values()) / 4  # the shortest bar, too, has room for its number
    ax.barh(list(values), list(values.values()))
    for name, value in values.items():
        number = f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        ax.annotate(number, (left, name), (6, 0), textcoords="offset points", color="white", va="center")
    ax.axvline(level, color="tab:red", linestyle="--", label=meaning)
    ax.set(xscale="log", xlabel=f"{unit} (logarithmic)", xlim=(left, 2 * max(level, *values.values())))
    ax.invert_yaxis()
    chart.legend(loc="outside upper right")
    pictures.save_figure(path, chart)


def save_animation(path, sheets, milliseconds=60):
    """Write sheets of equal size as a GIF that plays for ever."""
    frames = [Image.fromarray(pictures.to_uint8(sheet)) for sheet in sheets]
    with replacing(path) as partial:
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
