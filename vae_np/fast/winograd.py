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

Every step but the product is linear, so the backward pass is made of the adjoints of the steps. Two of them are each
other's adjoint already: (g0, g1) -> (g0, g0 + g1, g1) and (m0, m1, m2) -> (m0 + m1, m1 + m2).

On a CPU alone. On a GPU 16 products are sooner done than 9 and the transforms around them: a step of the benchmark on
an H100 took 1.5 times as long with 9 at batch 128, and 1.2 times at 512.
"""

import numpy as np

from vae_np.fast.arrays import FastConv2d, FastConvTranspose2d, Unfolding, Workspace, cut, padded
from vae_np.fast.planes import Planes

# Tiles that go through a layer at a time: so few that what one step writes is still in cache when the next one reads
# it, and so many that products and calls are worth their while.
TILES = 512
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
    """The adjoint of input_transform_1d: (t0, t1, t2) -> (t0, t1 - t0 - t2, t2), where t2 and the next t0 add up."""
    np.subtract(three[1], three[0], out=blocks[1::2])
    blocks[1::2] -= three[2]
    blocks[0], blocks[-1] = three[0, 0], three[2, -1]
    np.add(three[0, 1:], three[2, :-1], out=blocks[2:-1:2])


# The same for images and kernels: first rows, then columns, each time with a view that has their axis in front. Of a
# block's 2x2 pixels, the axis of 2 is the upper and the lower one, that of 2 C the left and the right one.


def rows_of_blocks(padded):
    """A view of padded images (N, H + 2, W + 2, C) with rows of blocks in front: (2 TH + 1, N, 2 (W + 2) C)."""
    n, h, w, c = padded.shape
    return padded.reshape(n, h // 2, 2 * w * c).swapaxes(0, 1)


def columns_of_rows(rows, c):
    """A view (3, TH, N, 2 (W + 2) C) -> (2 TW + 1, 3, TH, N, 2, 2 C): columns of blocks in front."""
    return rows.reshape(*rows.shape[:3], 2, rows.shape[3] // (4 * c), 2 * c).transpose(4, 0, 1, 2, 3, 5)


def columns_of_tiles(tiles):
    """A view (3, 3, N, TH, TW, 2, 2 C) -> (3, TW, 3, TH, N, 2, 2 C): input_transform_1d of columns_of_rows."""
    return tiles.transpose(1, 4, 0, 3, 2, 5, 6)


def rows_for(x, workspace):
    """Where the transformed rows of blocks of images x (N, H, W, C) can be written."""
    n, h, w, c = x.shape
    return workspace.get("rows", (3, h // 4, n, 2 * (w + 2) * c), x.dtype)


def tiles_for(x, workspace, name):
    """Where the tiles of images x (N, H, W, C) can be written: (3, 3, N, TH, TW, 2, 2 C)."""
    n, h, w, c = x.shape
    return workspace.get(name, (3, 3, n, h // 4, w // 4, 2, 2 * c), x.dtype)


def input_transform(x, workspace, name="tiles"):
    """Cut padded images into tiles of 3x3 blocks, transformed: x (N, H, W, C) -> (9, N * H/4 * W/4, 4 C).

    A tile is what 2x2 outputs see; neighbours share a row or a column of blocks. 4 must divide H and W: with a border
    of 1, H + 2 = 2 (2 H/4 + 1) pixels are 2 H/4 + 1 whole blocks. TH = H/4 and TW = W/4 count the tiles.
    """
    c, rows, tiles = x.shape[-1], rows_for(x, workspace), tiles_for(x, workspace, name)
    input_transform_1d(rows_of_blocks(padded(x, 1, workspace)), rows)
    input_transform_1d(columns_of_rows(rows, c), columns_of_tiles(tiles))
    return tiles.reshape(9, -1, 4 * c)


def input_transform_adjoint(tiles, x, workspace):
    """The adjoint of input_transform: (9, N * H/4 * W/4, 4 C) -> images x (N, H, W, C), which are written to."""
    n, h, w, c = x.shape
    rows, sums = rows_for(x, workspace), workspace.get("sums", (n, h + 2, w + 2, c), x.dtype)
    tiles = tiles.reshape(3, 3, n, h // 4, w // 4, 2, 2 * c)
    input_transform_1d_adjoint(columns_of_tiles(tiles), columns_of_rows(rows, c))
    input_transform_1d_adjoint(rows, rows_of_blocks(sums))
    x[...] = sums[:, 1:-1, 1:-1]


def kernel_transform(four, nine):
    """kernel_transform_1d along the first two axes: four (2, 2, ...) -> nine (3, 3, ...), which is written to.

    What the second axis begins with is already where it ends up; only the sums are left.
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
    """A view of images (N, H, W, F) as quads of 2x2 pixels: (2, 2, N, H/2, W/2, F)."""
    n, h, w, f = y.shape
    return y.reshape(n, h // 2, 2, w // 2, 2, f).transpose(2, 4, 0, 1, 3, 5)


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
        n, h, w, _ = shape
        return cut(n, max(1, TILES * 16 // (h * w)))

    def input(self, x, name):
        return input_transform(x, self.workspace, name)

    def input_adjoint(self, tiles, x):
        input_transform_adjoint(tiles, x, self.workspace)

    def patches_for(self, x):
        return tiles_for(x, self.workspace, "products of tiles").reshape(9, -1, 4 * x.shape[-1])

    def kernels(self, weight):
        return kernels_of(weight, self.kernel_workspace)

    def kernel_sums(self, grad):
        return self.kernel_workspace.get("sums", (9, grad.size // 4 // grad.shape[-1], grad.shape[-1]), grad.dtype)

    def kernels_adjoint(self, sums, grad):
        taps = taps_of(grad)
        output_transform(sums.reshape(3, 3, *taps.shape[2:]), taps, self.kernel_workspace)

    def products_for(self, y, name):
        n, h, w, f = y.shape
        return self.workspace.get(name, (9, n * (h // 2) * (w // 2), f), y.dtype)

    def output(self, products, y):
        n, h, w, f = y.shape
        output_transform(products.reshape(3, 3, n, h // 2, w // 2, f), quads_of(y), self.workspace)

    def output_adjoint(self, dy, name):
        n, h, w, f = dy.shape
        nine = self.products_for(dy, name)
        kernel_transform(quads_of(dy), nine.reshape(3, 3, n, h // 2, w // 2, f))
        return nine


class InTiles:
    """A convolution that chooses its way by the larger side; see way_for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.winograd, self.by_planes = Winograd(self.geometry), Planes(self.geometry)

    def way_for(self, shape):
        """For 4x4 kernels at stride 2 and padding 1 Planes, of few channels, or Winograd, of many whole tiles."""
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
