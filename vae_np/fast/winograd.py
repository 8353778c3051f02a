"""The 4x4 stride-2 convolution with 9 products where unfold needs 16.

Blocks. A 4x4 kernel that moves by 2 pixels always starts on an even pixel. So cut the padded image into blocks of 2x2
pixels and take the 4 C numbers of a block for the channels of one large pixel: the kernel is 2x2 of them, at stride 1.

Three products for four. In one direction, two neighbouring outputs of a kernel with the taps g0 and g1 are

    y0 = b0 g0 + b1 g1          y1 = b1 g0 + b2 g1                                      (4 products)

with b0, b1, b2 three neighbouring blocks. The same two numbers are

    m0 = (b0 - b1) g0           m1 = b1 (g0 + g1)           m2 = (b2 - b1) g1           (3 products)
    y0 = m0 + m1                y1 = m1 + m2

Here b is a row of 4 C numbers and g a matrix (4 C, F), whose sums are taken once for all images of a call. Done for
rows and for columns: 9 products for 16. This is Winograd's F(2, 2), known as Toom-Cook at the points 0, 1 and infinity
(Lavin and Gray 2016, "Fast algorithms for convolutional neural networks").

What the steps are called, and how a layer takes them, is in `Unfolding` and FastConv2d of arrays.py. All but the
product are linear, so the backward pass is made of the adjoints of the steps. Two of them are each
other's adjoint already: (g0, g1) -> (g0, g0 + g1, g1) and (m0, m1, m2) -> (m0 + m1, m1 + m2).

On a CPU alone. On a GPU 16 products are sooner done than 9 and the transforms around them: a step of the benchmark on
an H100 took 1.5 times as long with 9 at batch 128, and 1.2 times at 512.
"""

import numpy as np

from vae_np.fast.arrays import FastConv2d, FastConvTranspose2d, Unfolding, Workspace, cut
from vae_np.fast.planes import Planes
from vae_np.fast.products import prepared

# Tiles that go through a layer at a time: so few that what one step writes is still in cache when the next one reads
# it, and so many that products and calls are worth their while. Of c channels, fewer than these, CHANNELS // c times as
# many. What goes through are whole images, at least one.
TILES, CHANNELS = 256, 32
FEWEST_TILES = 48  # of a call; of fewer, the transforms of the kernels would cost more than they save
FEWEST_CHANNELS = 4  # of the larger side of a layer; fewer go plane by plane (planes.py)


# The four steps in one direction. Each works along the first axis of its arrays, and writes to its second argument.


def kernel_transform_1d(pair, three):
    """(g0, g1) -> (g0, g0 + g1, g1)."""
    three[::2] = pair
    np.add(pair[0], pair[1], out=three[1])


def output_transform_1d(three, pair):
    """The adjoint of kernel_transform_1d: (m0, m1, m2) -> (m0 + m1, m1 + m2)."""
    np.add(three[:2], three[1:], out=pair)


def input_transform_1d(blocks, three):
    """(b0, b1, b2) -> (b0 - b1, b1, b2 - b1) from every second block on, so that b2 is the b0 of the next three.

    blocks (2 T + 1, ...) -> three (3, T, ...).
    """
    b0, b1, b2 = blocks[:-1:2], blocks[1::2], blocks[2::2]
    np.subtract(b0, b1, out=three[0])
    three[1] = b1
    np.subtract(b2, b1, out=three[2])


def input_transform_1d_adjoint(three, blocks):
    """The adjoint of input_transform_1d: (t0, t1, t2) -> (t0, t1 - t0 - t2, t2), where t2 and the next t0 add up.

    three (3, T, ...) -> blocks (2 T + 1, ...).
    """
    np.subtract(three[1], three[0], out=blocks[1::2])
    blocks[1::2] -= three[2]
    blocks[0], blocks[-1] = three[0, 0], three[2, -1]
    np.add(three[0, 1:], three[2, :-1], out=blocks[2:-1:2])


# The same for images and kernels: along rows, then along columns.


def blocks_for(x, workspace):
    """Where images x (N, H, W, C), a border of 1 added, can be written as blocks: (2 TH + 1, 2 TW + 1, N, 2, 2, C).

    TH = H/4 and TW = W/4 count the tiles. Rows and columns of blocks come first, so that whatever is done to a block is
    done to those of all images in one run.
    """
    n, h, w, c = x.shape
    return workspace.get("blocks", (h // 2 + 1, w // 2 + 1, n, 2, 2, c), x.dtype)


def pixels_of_blocks(x, blocks):
    """For each part of blocks that is no border, the pixels of images x (N, H, W, C) that belong there.

    In a row, block q has the pixels 2 q - 1 and 2 q of the image. They lie side by side in x and in the block, so they
    go as one run; the first and the last block have one pixel, and border.
    """
    n, h, w, c = x.shape
    for i in range(2):  # the upper row of pixels in all blocks, the lower one
        block_rows, image_rows = blocks[1 - i : h // 2 + 1 - i, :, :, i], x[:, 1 - i :: 2].transpose(1, 2, 0, 3)
        yield block_rows[:, 0, :, 1], image_rows[:, 0]
        yield block_rows[:, -1, :, 0], image_rows[:, -1]
        pairs = image_rows[:, 1:-1].reshape(h // 2, w // 2 - 1, 2, n, c)
        yield block_rows[:, 1:-1], pairs.swapaxes(2, 3)


def rows_for(x, workspace):
    """Where the transformed rows of blocks of images x can be written: (3, TH, 2 TW + 1, N, 2, 2, C)."""
    n, h, w, c = x.shape
    return workspace.get("rows", (3, h // 4, w // 2 + 1, n, 2, 2, c), x.dtype)


def tiles_for(x, workspace, name):
    """Where the tiles of images x can be written, one row for each: (9, TH * TW * N, 4 C)."""
    n, h, w, c = x.shape
    return workspace.get(name, (9, h // 4 * (w // 4) * n, 4 * c), x.dtype)


def columns_first(rows, tiles):
    """Views of rows and of tiles with the axis of columns in front, as input_transform_1d wants them."""
    _, height, width, *block = rows.shape
    tiles = tiles.reshape(3, 3, height, width // 2, *block)
    return rows.transpose(2, 0, 1, 3, 4, 5, 6), tiles.transpose(1, 3, 0, 2, 4, 5, 6, 7)


def input_transform(x, workspace, name="tiles"):
    """Pad images by 1 and cut them into tiles of 3x3 blocks, transformed: x (N, H, W, C) -> (9, H/4 * W/4 * N, 4 C).

    A tile is what 2x2 outputs see; neighbours share a row or a column of blocks. 4 must divide H and W.
    """
    blocks, rows, tiles = blocks_for(x, workspace), rows_for(x, workspace), tiles_for(x, workspace, name)
    blocks[0, :, :, 0] = blocks[-1, :, :, 1] = blocks[:, 0, :, :, 0] = blocks[:, -1, :, :, 1] = 0  # the border
    for part, pixels in pixels_of_blocks(x, blocks):
        part[...] = pixels
    input_transform_1d(blocks, rows)
    input_transform_1d(*columns_first(rows, tiles))
    return tiles


def input_transform_adjoint(tiles, x, workspace):
    """The adjoint of input_transform: (9, H/4 * W/4 * N, 4 C) -> images x (N, H, W, C), which are written to."""
    blocks, rows = blocks_for(x, workspace), rows_for(x, workspace)
    column_rows, column_tiles = columns_first(rows, tiles)
    input_transform_1d_adjoint(column_tiles, column_rows)
    input_transform_1d_adjoint(rows, blocks)
    for part, pixels in pixels_of_blocks(x, blocks):
        pixels[...] = part


def kernel_transform(four, nine):
    """kernel_transform_1d along the first two axes: four (2, 2, ...) -> nine (3, 3, ...), which is written to.

    Along the second axis, g0 and g1 are then in their places already; only their sums are left.
    """
    kernel_transform_1d(four, nine[:, ::2])
    np.add(nine[:, 0], nine[:, 2], out=nine[:, 1])


def output_transform(nine, four, workspace):
    """The adjoint of kernel_transform: nine (3, 3, ..., F) -> four (2, 2, ..., F), which is written to."""
    half = workspace.get("four of nine", (2, *nine.shape[1:]), nine.dtype)
    output_transform_1d(nine, half)
    output_transform_1d(half.swapaxes(0, 1), four.swapaxes(0, 1))


def taps_of(weight):
    """A view of kernels (4, 4, C, F) as 2x2 taps, each a block of pixels: (2, 2, 2, 2, C, F), taps first."""
    return weight.reshape(2, 2, 2, 2, *weight.shape[2:]).swapaxes(1, 2)


def quads_of(y):
    """A view of images (N, H, W, F) as quads of 2x2 pixels: (2, 2, H/2, W/2, N, F)."""
    n, h, w, f = y.shape
    return y.reshape(n, h // 2, 2, w // 2, 2, f).transpose(2, 4, 1, 3, 0, 5)


def kernels_of(weight, workspace):
    """The kernels in the form that multiplies tiles: (4, 4, C, F) -> (9, 4 C, F)."""
    taps = taps_of(weight)
    kernels = workspace.get("kernels", (3, 3, *taps.shape[2:]), weight.dtype)
    kernel_transform(taps, kernels)
    return kernels.reshape(9, -1, weight.shape[-1])


class Winograd(Unfolding):
    """The way of 9 products for 16: tiles, kernels and products are nine matrices each, 3 for rows times 3 for columns.

    np.matmul of nine with nine is nine products. kernel_transform and output_transform are each other's adjoint.
    """

    def __init__(self, geometry):
        super().__init__(geometry)
        self.kernel_workspace = Workspace()  # of its own, since arrays of the same names have other shapes there

    def groups(self, shape):
        n, h, w, c = shape
        return cut(n, max(1, TILES * max(1, CHANNELS // c) * 16 // (h * w)))

    def input(self, x, name):
        return input_transform(x, self.workspace, name)

    def input_adjoint(self, tiles, x):
        input_transform_adjoint(tiles, x, self.workspace)

    def patches_for(self, x):
        return tiles_for(x, self.workspace, "products of tiles")

    def kernels(self, weight):
        return kernels_of(weight, self.kernel_workspace)

    def prepared(self, matrix, x):
        n, h, w, _ = x.shape
        return prepared(matrix, rows=n * h * w // 16)

    def kernel_sums(self, grad):
        return self.kernel_workspace.get("sums", (9, grad.size // 4 // grad.shape[-1], grad.shape[-1]), grad.dtype)

    def kernels_adjoint(self, sums, grad):
        taps = taps_of(grad)
        output_transform(sums.reshape(3, 3, *taps.shape[2:]), taps, self.kernel_workspace)

    def products_for(self, y, name):
        n, h, w, f = y.shape
        return self.workspace.get(name, (9, (h // 2) * (w // 2) * n, f), y.dtype)  # TH = H/2 of the smaller side

    def output(self, products, y):
        n, h, w, f = y.shape
        output_transform(products.reshape(3, 3, h // 2, w // 2, n, f), quads_of(y), self.workspace)

    def output_adjoint(self, dy, name):
        n, h, w, f = dy.shape
        nine = self.products_for(dy, name)
        kernel_transform(quads_of(dy), nine.reshape(3, 3, h // 2, w // 2, n, f))
        return nine


class InTiles:
    """A convolution that chooses its way by the larger side; see way_for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.winograd, self.by_planes = Winograd(self.geometry), Planes(self.geometry)

    def way_for(self, shape):
        """To unfold, unless a 4x4 kernel moves by 2 over images of even size, with a border of 1.

        Then few channels go by Planes, and more by Winograd where there are whole tiles, and enough of them.
        """
        n, h, w, c = shape
        if self.geometry != (4, 2, 1) or h % 2 or w % 2:
            return self.unfolding
        if c < FEWEST_CHANNELS:
            return self.by_planes
        return self.winograd if h % 4 == w % 4 == 0 and n * h * w >= 16 * FEWEST_TILES else self.unfolding


class WinogradConv2d(InTiles, FastConv2d):
    """A Conv2d with 9 products for 16, where that pays."""


class WinogradConvTranspose2d(InTiles, FastConvTranspose2d):
    """A ConvTranspose2d with 9 products for 16, where that pays."""
