"""What lesson 08 needs beside its subject: small faces, and its charts."""

import numpy as np

from vae_np.study import pictures


def small_faces(images):
    """uint8 images (N, S, S, 3) -> the same at 32x32 or less: blocks of pixels averaged, as far as S can be halved."""
    size = side = images.shape[1]
    while size > 32 and size % 2 == 0:
        size //= 2
    blocks = images.reshape(-1, size, side // size, size, side // size, 3)
    return np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def mean(values):
    """The mean of those values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return known.mean() if len(known) else np.nan


def tangent(ax, rate, distortion, slope):
    """Draw a piece of the line on which D + slope * R is constant."""
    reach = min(0.4 * rate, 0.3 * distortion / slope)
    rates = np.linspace(rate - reach, rate + reach, 50)
    ax.plot(rates, distortion - slope * (rates - rate), color="tab:orange", linewidth=1)


def nearest_free(point, size, taken):
    """The lower left corner of the free place nearest to a point, for a picture of this size (2,).

    Everything is in axes coordinates, from 0 to 1. taken holds rectangles: a list of (left, bottom, right, top).
    """
    corners = np.stack(np.meshgrid(*(np.linspace(0.01, 0.99 - side, 100) for side in size)), axis=-1).reshape(-1, 2)
    left_bottom, right_top = np.split(np.array(taken), 2, axis=1)
    apart = (corners[:, None] >= right_top) | (corners[:, None] + size <= left_bottom)
    free = corners[apart.any(axis=2).all(axis=1)]
    return free[np.square(free + size / 2 - point).sum(axis=1).argmin()]


def draw_plane(path, rows, curve, sigma):
    """The rate-distortion plane: a point for each model, its pictures beside it.

    A row has a name, R, D, slope (beta in the units of D, or None), faces and samples, of which the first are shown.
    curve (2, n) holds rates and distortions to compare with; sigma is the one that D is measured with.
    """
    chart, axes = pictures.figure(width=11, height=7)
    ax, width, height = axes[0, 0], 0.09, 0.07
    size = np.array([1.3 * width, 1.1 * height])  # with room for the number
    points = np.array([[row["R"], row["D"]] for row in rows])
    ax.plot(*curve, "--", color="grey", label="linear codes of Gaussian faces")
    ax.plot([], [], color="tab:orange", label="D + beta R is constant")
    ax.set(xscale="symlog", yscale="log", xlim=(-0.15, 4 * points[:, 0].max() + 1),
           ylim=(points[:, 1].min() / 2.5, 4 * points[:, 1].max()),
           title="beside each model: a held-out face through a sampled code, and a new one",
           xlabel="rate R, nats per image (linear up to 2, then logarithmic)",
           ylabel=f"distortion D, nats per image at sigma = {sigma} (logarithmic)")
    to_axes = ax.transData + ax.transAxes.inverted()
    places = to_axes.transform(points)
    taken = [(0, 0, 0.3, 0.38), (0.7, 0.88, 1, 1)]  # the names, the legend
    taken += [(*place - 0.015, *place + 0.015) for place in np.concatenate([places, to_axes.transform(curve.T)])]
    for i in points[:, 1].argsort():  # from below, so that neighbours stay neighbours
        row, place = rows[i], places[i]
        corner = nearest_free(place, size, taken)
        taken.append((*corner, *(corner + size)))
        left, bottom = corner + np.array([0.25 * width, 0])  # beside the number
        centre = left + width / 2, bottom + height / 2
        ax.plot(*zip(place, centre, strict=True), transform=ax.transAxes, color="lightgrey", zorder=1)
        inset = ax.inset_axes([left, bottom, width, height])
        inset.imshow(pictures.grid(np.stack([row["faces"][0], row["samples"][0]]), 2))
        inset.axis("off")
        inset.text(-3, 0, i + 1, ha="right", va="top")
        if row["slope"] is not None:
            tangent(ax, row["R"], row["D"], row["slope"])
    ax.plot(*points.T, "o", color="tab:blue", label="a model, judged on held-out faces")
    ax.text(0.02, 0.02, "\n".join(f"{i + 1} {row['name']}" for i, row in enumerate(rows)), transform=ax.transAxes)
    ax.legend(loc="upper right")
    pictures.save_figure(path, chart)


def draw_kl(path, rows):
    """A histogram for each row: its KL by dimension, sorted, on one scale."""
    chart, axes = pictures.figure(columns=len(rows), width=3.2, height=2.8)
    for ax, row in zip(axes[0], rows, strict=True):
        ax.bar(range(len(row["kl"])), row["kl"])
        ax.set(title=f"{row['name']}: {row['R']:.1f} nats in all", xlabel="latent dimension, sorted",
               ylim=(0, 1.05 * max(each["kl"].max() for each in rows)))
    axes[0, 0].set(ylabel="KL, nats per image")
    pictures.save_figure(path, chart)
