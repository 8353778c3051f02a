"""Pictures: grids and labelled rows of faces, curves, bars, animations.

Only this file uses matplotlib, and imports it only when it draws.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae_np.disk.files import replacing

PAPER = 255  # the background, white
GAP = 2  # pixels between two images


def to_uint8(images):
    """Float images in [0, 1] -> uint8, rounded; values outside are clipped. uint8 passes as it is."""
    if images.dtype == np.uint8:
        return np.asarray(images)
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


def grid(images, columns):
    """Images (N, H, W, 3), row by row, on one sheet: uint8 (rows * (H + gap), columns * (W + gap), 3) without a rim."""
    images = to_uint8(images)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + GAP, w + GAP, c), PAPER, np.uint8)
    cells[:n, :h, :w] = images
    sheet = cells.reshape(rows, columns, h + GAP, w + GAP, c).swapaxes(1, 2)
    return sheet.reshape(rows * (h + GAP), columns * (w + GAP), c)[:-GAP, :-GAP]


def enlarge(sheet, scale):
    """Repeat every pixel scale x scale times, so that small images can be seen as they are."""
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def strip(groups):
    """Groups of images (N, H, W, 3) in one line: uint8 (H, W', 3). Wider gaps set the groups apart."""
    sheets = [grid(images, len(images)) for images in groups]
    apart = np.full((len(sheets[0]), 4 * GAP, 3), PAPER, np.uint8)
    return np.concatenate([part for sheet in sheets for part in (apart, sheet)][1:], axis=1)


def labelled_rows(rows, scale=2):
    """A sheet of rows of images, each with its label at the left: rows is a list of (label, images, ...).

    Most rows have one group of images (N, H, W, 3); where there are more, they are set apart.
    """
    strips = [enlarge(strip(groups), scale) for _, *groups in rows]
    font = ImageFont.load_default(6 * scale + 2)
    margin = 8 + max(int(font.getlength(line)) for label, *_ in rows for line in label.split("\n")) + 8
    gap = GAP * scale
    height = sum(len(line) + gap for line in strips) - gap
    sheet = Image.new("RGB", (margin + max(line.shape[1] for line in strips), height), (PAPER,) * 3)
    draw, top = ImageDraw.Draw(sheet), 0
    for (label, *_), line in zip(rows, strips, strict=True):
        draw.text((8, top + len(line) // 2), label, fill="black", font=font, anchor="lm")
        sheet.paste(Image.fromarray(line), (margin, top))
        top += len(line) + gap
    return np.asarray(sheet)


def save(path, sheet, scale=1):
    """Write a uint8 (H, W, 3) sheet, or a float one in [0, 1], as an image file; the ending of path says which kind."""
    with replacing(path) as partial:
        Image.fromarray(enlarge(to_uint8(sheet), scale)).save(partial)


def save_animation(path, sheets, milliseconds=60):
    """Write sheets of equal size as a GIF that plays for ever."""
    frames = [Image.fromarray(to_uint8(sheet)) for sheet in sheets]
    with replacing(path) as partial:
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def figure(rows=1, columns=1, width=5.0, height=3.5):
    """A matplotlib figure that needs no screen, and its axes (rows, columns), each of width x height inches."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return chart, chart.subplots(rows, columns, squeeze=False)


def save_figure(path, chart):
    """Write a figure as an image file."""
    with replacing(path) as partial:
        chart.savefig(partial, dpi=110)


def plot_losses(path, history):
    """Draw what train.Trainer's history (a list of dicts) says over epochs.

    Above: total, reconstruction and KL, training beside validation, and PSNR. Below, how KL is spread over the latents,
    how many of them are active, the norm of the gradient, and sigma, if there is one.
    """
    chart, axes = figure(rows=2, columns=4, width=3.8, height=3.2)

    def panel(ax, title, unit, curves):
        for (label, name), style in zip(curves.items(), ("o-", "s--", "^:", "v-."), strict=False):
            ax.plot([row["epoch"] for row in history], [row[name] for row in history], style, label=label)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        if len(curves) > 1:
            ax.legend(fontsize="small")

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
    save_figure(path, chart)


def bars(path, values, unit, mark):
    """Draw a bar for every entry of values {name: number}, the first on top, along a logarithmic axis.

    unit is what the axis says; mark is a number to compare with, drawn as a line, and what the line stands for.
    """
    chart, axes = figure(width=8.0, height=1.2 + 0.4 * len(values))
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
    save_figure(path, chart)
