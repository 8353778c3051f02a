"""Pictures: grids and labelled rows of faces, and figures for charts."""

import os
import sys

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
    apart = np.full((groups[0].shape[1], 4 * GAP, 3), PAPER, np.uint8)
    return np.concatenate([part for images in groups for part in (apart, grid(images, len(images)))][1:], axis=1)


def labelled_rows(rows, scale=2):
    """A sheet of rows of images, each with its label at the left: rows is a list of (label, images, ...).

    Most rows have one group of images (N, H, W, 3); where there are more, they are set apart.
    """
    strips = [enlarge(strip(groups), scale) for _, *groups in rows]
    font = ImageFont.load_default(6 * scale + 2)
    margin = 8 + max(int(font.getlength(line)) for label, *_ in rows for line in label.split("\n")) + 8
    *tops, end = np.cumsum([0, *(len(line) + GAP * scale for line in strips)]).tolist()
    sheet = Image.new("RGB", (margin + max(line.shape[1] for line in strips), end - GAP * scale), (PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    for (label, *_), line, top in zip(rows, strips, tops, strict=True):
        draw.text((8, top + len(line) // 2), label, fill="black", font=font, anchor="lm")
        sheet.paste(Image.fromarray(line), (margin, top))
    return np.asarray(sheet)


def save(path, sheet, scale=1):
    """Write a uint8 (H, W, 3) sheet, or a float one in [0, 1], as an image file; the ending of path says which kind."""
    with replacing(path) as partial:
        Image.fromarray(enlarge(to_uint8(sheet), scale)).save(partial)


def figure(rows=1, columns=1, width=5.0, height=3.5):
    """A matplotlib figure that needs no screen, and its axes (rows, columns), each of width x height inches."""
    if "ipykernel" not in sys.modules:  # a notebook hands its backend to all that it starts, whether it is there or not
        os.environ.pop("MPLBACKEND", None)
    from matplotlib.figure import Figure  # only now, since most programs draw no chart

    chart = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return chart, chart.subplots(rows, columns, squeeze=False)


def save_figure(path, chart):
    """Write a figure as an image file."""
    with replacing(path) as partial:
        chart.savefig(partial, dpi=110)
