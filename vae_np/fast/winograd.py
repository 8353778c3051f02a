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

from vae_np.fast.arrays import FastConv2d, FastConvTranspose2d, Unfolding, Workspace

# Images that are cut into tiles at a time: few, so that what one step writes is still in cache when the next reads it.
GROUP = 2
FEWEST_CHANNELS = 4  # of the larger side of a layer; of 3, the transforms would cost more than they save


# The four steps in one direction. Each works along the first axis of its arrays, and writes to its second argument.


def kernel_transform_1d(pair, three):
    """(g0, g1) -> (g0, g0 + g1, g1)."""
    three[0] = pair[0]
    np.add(pair[0], pair[1], out=three[1])
    three[2] = pair[1]


def output_transform_1d(three, pair):
    """The adjoint of kernel_transform_1d: (m0, m1, m2) -> (m0 + m1, m1 + m2)."""
    np.add(three[0], three[1], out=pair[0])
    np.add(three[1], three[2], out=pair[1])


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
    b0, b1, b2 = blocks[:-1:2], blocks[1::2], blocks[2::2]
    np.subtract(three[1], three[0], out=b1)
    b1 -= three[2]
    b0[...] = three[0]
    blocks[-1] = 0  # no tile has the last block for its b0
    b2 += three[2]


# The same for images and kernels: first rows, then columns, each time with a view that has their axis in front.


def columns_of_rows(rows):
    """A view (3, TH, N, 2, BW, 2 C) -> (BW, 3, TH, N, 2, 2 C): the BW = 2 TW + 1 columns of blocks in front."""
    return rows.transpose(4, 0, 1, 2, 3, 5)


def columns_of_tiles(tiles):
    """A view (3, 3, N, TH, TW, 2, 2 C) -> (3, TW, 3, TH, N, 2, 2 C): input_transform_1d of columns_of_rows."""
    return tiles.transpose(1, 4, 0, 3, 2, 5, 6)


def one_group(name, shape, dtype, workspace):
    """What a group of images (N, H, W, C) passes through between pixels and tiles: padded images, blocks, and rows.

    Blocks are a view (2 TH + 1, group, 2, 2 TW + 1, 2 C) of the padded images with rows of blocks in front, where
    TH = H/4 and TW = W/4 count the tiles; rows (3, TH, group, 2, 2 TW + 1, 2 C) are their transforms. Of a block's 2x2
    pixels, the axis of 2 is the upper and the lower one, that of 2 C the left and the right one. `name` is the caller's
    own for the padded images: one of them relies on a border that stays zero.
    """
    n, h, w, c = shape
    group = max(1, min(n, GROUP))  # 1 for an empty batch, too: range has no steps of 0
    padded = workspace.get(name, (group, h + 2, w + 2, c), dtype)
    blocks = padded.reshape(group, h // 2 + 1, 2, w // 2 + 1, 2 * c).swapaxes(0, 1)
    return padded, blocks, workspace.get("rows", (3, h // 4, group, 2, w // 2 + 1, 2 * c), dtype)


def input_transform(x, workspace):
    """Cut padded images into tiles of 3x3 blocks, transformed: x (N, H, W, C) -> (9, N * H/4 * W/4, 4 C).

    A tile is what 2x2 outputs see; neighbours share a row or a column of blocks. 4 must divide H and W: with a border
    of 1, H + 2 = 2 (2 H/4 + 1) pixels are 2 H/4 + 1 whole blocks.
    """
    n, h, w, c = x.shape
    padded, blocks, rows = one_group("padded", x.shape, x.dtype, workspace)
    tiles = workspace.get("tiles", (3, 3, n, h // 4, w // 4, 2, 2 * c), x.dtype)
    for start in range(0, n, len(padded)):
        count = min(len(padded), n - start)
        padded[:count, 1:-1, 1:-1] = x[start : start + count]  # the border keeps its zeros
        input_transform_1d(blocks[:, :count], rows[:, :, :count])
        input_transform_1d(columns_of_rows(rows[:, :, :count]), columns_of_tiles(tiles[:, :, start : start + count]))
    return tiles.reshape(9, -1, 4 * c)


def input_transform_adjoint(tiles, shape, workspace):
    """The adjoint of input_transform: (9, N * H/4 * W/4, 4 C) -> images of this shape (N, H, W, C)."""
    n, h, w, c = shape
    padded, blocks, rows = one_group("sums", shape, tiles.dtype, workspace)
    tiles = tiles.reshape(3, 3, n, h // 4, w // 4, 2, 2 * c)
    x = np.empty(shape, tiles.dtype)
    for start in range(0, n, len(padded)):
        count = min(len(padded), n - start)
        part = tiles[:, :, start : start + count]
        input_transform_1d_adjoint(columns_of_tiles(part), columns_of_rows(rows[:, :, :count]))
        input_transform_1d_adjoint(rows[:, :, :count], blocks[:, :count])
        x[start : start + count] = padded[:count, 1:-1, 1:-1]
    return x


def kernel_transform(four, nine, workspace):
    """kernel_transform_1d along the first two axes: four (2, 2, ...) -> nine (3, 3, ...), which is written to."""
    half = workspace.get("nine of four", (3, *four.shape[1:]), four.dtype)
    kernel_transform_1d(four, half)
    kernel_transform_1d(half.swapaxes(0, 1), nine.swapaxes(0, 1))


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
    kernel_transform(taps, kernels, workspace)
    return kernels.reshape(9, -1, weight.shape[-1])


class Winograd(Unfolding):
    """The way of 9 products for 16: tiles, kernels and products are nine matrices each, 3 for rows times 3 for columns.

    np.matmul of nine with nine is nine products. kernel_transform and output_transform are each other's adjoint.
    """

    def __init__(self, geometry):
        super().__init__(geometry)
        self.kernel_workspace = Workspace()  # of its own, since arrays of the same names have other shapes there

    def input(self, x):
        return input_transform(x, self.workspace)

    def input_adjoint(self, tiles, shape):
        return input_transform_adjoint(tiles, shape, self.workspace)

    def kernels(self, weight):
        return kernels_of(weight, self.kernel_workspace)

    def kernel_gradient(self, tiles, dproducts, grad):
        taps = taps_of(grad)
        dkernels = self.kernel_workspace.get("dkernels", (3, 3, *taps.shape[2:]), grad.dtype)
        np.matmul(tiles.swapaxes(1, 2), dproducts, out=dkernels.reshape(9, -1, grad.shape[-1]))
        output_transform(dkernels, taps, self.kernel_workspace)

    def output(self, products, shape):
        n, h, w, f = shape
        y = np.empty(shape, products.dtype)
        output_transform(products.reshape(3, 3, n, h // 2, w // 2, f), quads_of(y), self.workspace)
        return y

    def output_adjoint(self, dy, name):
        n, h, w, f = dy.shape
        nine = self.workspace.get(name, (9, n * (h // 2) * (w // 2), f), dy.dtype)
        kernel_transform(quads_of(dy), nine.reshape(3, 3, n, h // 2, w // 2, f), self.workspace)
        return nine

    def product(self, name, a, b):
        return np.matmul(a, b, out=self.workspace.get(name, (9, a.shape[1], b.shape[2]), a.dtype))


class InTiles:
    """A convolution with 9 products for 16 where its larger side falls into whole tiles; otherwise it unfolds."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.winograd = Winograd(self.geometry)

    def way_for(self, shape):
        """Winograd for 4x4 kernels at stride 2 and padding 1, and enough channels."""
        _, h, w, c = shape
        fits = self.geometry == (4, 2, 1) and c >= FEWEST_CHANNELS and h % 4 == w % 4 == 0
        return self.winograd if fits else self.unfolding


class WinogradConv2d(InTiles, FastConv2d):
    """A Conv2d with 9 products for 16."""


class WinogradConvTranspose2d(InTiles, FastConvTranspose2d):
    """A ConvTranspose2d with 9 products for 16."""
