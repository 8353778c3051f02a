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
"""

from vae_np.backend import on_gpu, xp
from vae_np.conv import Conv2d, ConvTranspose2d, Workspace
from vae_np.fast import gpu as kernels
from vae_np.layers import add_bias, sum_rows

# Images that are cut into tiles at a time: few, so that what one step writes is still in cache when the next reads it.
GROUP = 2


# The four steps in one direction. Each works along the first axis of its arrays, and writes to its second argument.


def three_of_two(pair, three):
    """(g0, g1) -> (g0, g0 + g1, g1)."""
    three[0] = pair[0]
    xp.add(pair[0], pair[1], out=three[1])
    three[2] = pair[1]


def two_of_three(three, pair):
    """The adjoint of three_of_two: (m0, m1, m2) -> (m0 + m1, m1 + m2)."""
    xp.add(three[0], three[1], out=pair[0])
    xp.add(three[1], three[2], out=pair[1])


def differences(blocks, three):
    """(b0, b1, b2) -> (b0 - b1, b1, b2 - b1) from every second block on, so that b2 is the b0 of the next three.

    blocks (2 T + 1, ...) -> three (3, T, ...).
    """
    b0, b1, b2 = blocks[:-1:2], blocks[1::2], blocks[2::2]
    xp.subtract(b0, b1, out=three[0])
    three[1] = b1
    xp.subtract(b2, b1, out=three[2])


def differences_adjoint(three, blocks):
    """The adjoint of differences: (t0, t1, t2) -> (t0, t1 - t0 - t2, t2), where t2 and the next t0 add up."""
    b0, b1, b2 = blocks[:-1:2], blocks[1::2], blocks[2::2]
    xp.subtract(three[1], three[0], out=b1)
    b1 -= three[2]
    b0[...] = three[0]
    blocks[-1] = 0  # no tile has the last block for its b0
    b2 += three[2]


# The same for images and kernels: first rows, then columns, each time with a view that has their axis in front.


def columns_of_rows(rows):
    """A view (3, TH, N, 2, BW, 2 C) -> (BW, 3, TH, N, 2, 2 C): the BW = 2 TW + 1 columns of blocks in front."""
    return rows.transpose(4, 0, 1, 2, 3, 5)


def columns_of_tiles(tiles):
    """A view (3, 3, N, TH, TW, 2, 2 C) -> (3, TW, 3, TH, N, 2, 2 C): what `differences` makes of columns_of_rows."""
    return tiles.transpose(1, 4, 0, 3, 2, 5, 6)


def one_group(name, shape, dtype, workspace):
    """What a group of images passes through between pixels and tiles: padded images, the same as blocks, and rows.

    shape is that of all images, (N, H, W, C). Blocks are a view (2 TH + 1, group, 2, 2 TW + 1, 2 C) with rows of blocks
    in front, where TH = H/4 and TW = W/4 count the tiles; rows (3, TH, group, 2, 2 TW + 1, 2 C) are their differences.
    Of a block's 2x2 pixels, the axis of 2 is the upper and the lower one, that of 2 C the left and the right one.
    `name` is the caller's own for the padded images: one of them relies on a border that stays zero.
    """
    n, h, w, c = shape
    group = max(1, min(n, GROUP))  # 1 for an empty batch, too: range has no steps of 0
    padded = workspace.get(name, (group, h + 2, w + 2, c), dtype)
    blocks = padded.reshape(group, h // 2 + 1, 2, w // 2 + 1, 2 * c).swapaxes(0, 1)
    return padded, blocks, workspace.get("rows", (3, h // 4, group, 2, w // 2 + 1, 2 * c), dtype)


@on_gpu(kernels.tiles_of)
def tiles_of(x, workspace):
    """Cut padded images into tiles of 3x3 blocks, in differences: x (N, H, W, C) -> (9, N * H/4 * W/4, 4 C).

    A tile is what 2x2 outputs see; neighbours share a row or a column of blocks. 4 must divide H and W: with a border
    of 1, H + 2 = 2 (2 H/4 + 1) pixels are 2 H/4 + 1 whole blocks.
    """
    n, h, w, c = x.shape
    padded, blocks, rows = one_group("padded", x.shape, x.dtype, workspace)
    tiles = workspace.get("tiles", (3, 3, n, h // 4, w // 4, 2, 2 * c), x.dtype)
    for start in range(0, n, len(padded)):
        count = min(len(padded), n - start)
        padded[:count, 1:-1, 1:-1] = x[start : start + count]  # the border keeps its zeros
        differences(blocks[:, :count], rows[:, :, :count])
        differences(columns_of_rows(rows[:, :, :count]), columns_of_tiles(tiles[:, :, start : start + count]))
    return tiles.reshape(9, -1, 4 * c)


@on_gpu(kernels.images_of)
def images_of(tiles, shape, workspace, bias=None, slope=1.0):
    """The adjoint of tiles_of: (9, N * H/4 * W/4, 4 C) -> images of this shape (N, H, W, C).

    Where a bias is given, they then go through layers.add_bias.
    """
    n, h, w, c = shape
    padded, blocks, rows = one_group("sums", shape, tiles.dtype, workspace)
    tiles = tiles.reshape(3, 3, n, h // 4, w // 4, 2, 2 * c)
    x = xp.empty(shape, tiles.dtype)
    for start in range(0, n, len(padded)):
        count = min(len(padded), n - start)
        differences_adjoint(columns_of_tiles(tiles[:, :, start : start + count]), columns_of_rows(rows[:, :, :count]))
        differences_adjoint(rows[:, :, :count], blocks[:, :count])
        x[start : start + count] = padded[:count, 1:-1, 1:-1]
    return x if bias is None else add_bias(x, bias, slope)


@on_gpu(kernels.nine_of_four)
def nine_of_four(four, nine, workspace):
    """three_of_two along the first two axes: four (2, 2, ...) -> nine (3, 3, ...), which is written to."""
    half = workspace.get("nine of four", (3, *four.shape[1:]), four.dtype)
    three_of_two(four, half)
    three_of_two(half.swapaxes(0, 1), nine.swapaxes(0, 1))


@on_gpu(kernels.four_of_nine)
def four_of_nine(nine, four, workspace, bias=None, slope=1.0):
    """The adjoint of nine_of_four: nine (3, 3, ..., F) -> four (2, 2, ..., F), which is written to.

    Where a bias is given, four then goes through layers.add_bias.
    """
    half = workspace.get("four of nine", (2, *nine.shape[1:]), nine.dtype)
    two_of_three(nine, half)
    two_of_three(half.swapaxes(0, 1), four.swapaxes(0, 1))
    if bias is not None:
        add_bias(four, bias, slope)


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
    nine_of_four(taps, kernels, workspace)
    return kernels.reshape(9, -1, weight.shape[-1])


def kernel_gradient(tiles, dproducts, weight_grad, workspace):
    """Write the gradient of the kernels, given the tiles and the gradient of their products with kernels_of(weight)."""
    taps = taps_of(weight_grad)
    dkernels = workspace.get("dkernels", (3, 3, *taps.shape[2:]), weight_grad.dtype)
    xp.matmul(tiles.swapaxes(1, 2), dproducts, out=dkernels.reshape(9, -1, weight_grad.shape[-1]))
    four_of_nine(dkernels, taps, workspace)


def in_whole_tiles(geometry, height, width):
    """Whether the larger side of a convolution, height x width, falls into whole tiles: 4x4, stride 2, padding 1."""
    return geometry == (4, 2, 1) and height > 0 and width > 0 and height % 4 == 0 and width % 4 == 0


class WinogradConv2d(Conv2d):
    """A Conv2d that takes 9 products for 16 where it can, and computes the same numbers up to rounding.

        forward    T = tiles_of(x)         U = kernels_of(weight)            y = four_of_nine(T U) + b
        backward   dM = nine_of_four(dy)   dweight = four_of_nine(T^T dM)    dx = images_of(dM U^T)

    T (tiles), U (kernels), M = T U (products) and dM (dproducts) are nine matrices each, and xp.matmul of nine with
    nine is nine products. They are numbered alike: 3 for rows times 3 for columns. On a GPU, four_of_nine also applies
    the LeakyReLU that follows, whose slope layers.Sequential puts into self.slope; elsewhere that stays 1.

    Other kernels than 4x4 at stride 2 and padding 1, and images whose height or width 4 does not divide, go through
    Conv2d.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kernel_workspace = Workspace()  # of its own, since arrays of the same names have other shapes there

    def forward(self, x):
        self._check_images(x)
        n, h, w, _ = self.input_shape = x.shape
        self.fast = in_whole_tiles(self.geometry, h, w)
        if not self.fast:
            return super().forward(x)
        self.tiles = tiles_of(x, self.workspace)
        self.kernels = kernels_of(self.weight.value, self.kernel_workspace)
        products = self.workspace.get("products", (3, 3, n, h // 4, w // 4, self.outputs), x.dtype)
        xp.matmul(self.tiles, self.kernels, out=products.reshape(9, -1, self.outputs))
        y = xp.empty((n, h // 2, w // 2, self.outputs), x.dtype)  # a new one: the layers after this keep it
        four_of_nine(products, quads_of(y), self.workspace, self.bias.value, self.slope)
        return y

    def backward_parameters(self, dy):
        if not self.fast:
            return super().backward_parameters(dy)
        n, h, w, _ = self.input_shape
        # In the memory of forward's products, which the gradient of a product does not need.
        dproducts = self.workspace.get("products", (3, 3, n, h // 4, w // 4, self.outputs), dy.dtype)
        nine_of_four(quads_of(dy), dproducts, self.workspace)
        self.dproducts = dproducts.reshape(9, -1, self.outputs)
        kernel_gradient(self.tiles, self.dproducts, self.weight.grad, self.kernel_workspace)
        self.bias.grad[...] = sum_rows(dy)

    def backward(self, dy):
        if not self.fast:
            return super().backward(dy)
        self.backward_parameters(dy)
        dtiles = self.workspace.get("dtiles", self.tiles.shape, dy.dtype)
        xp.matmul(self.dproducts, self.kernels.swapaxes(1, 2), out=dtiles)
        return images_of(dtiles, self.input_shape, self.workspace)


class WinogradConvTranspose2d(ConvTranspose2d):
    """A ConvTranspose2d that takes 9 products for 16 where it can: WinogradConv2d read backwards.

        forward    S = nine_of_four(x)       U = kernels_of(weight)           y = images_of(S U^T) + b
        backward   T = tiles_of(dy)          dweight = four_of_nine(T^T S)    dx = four_of_nine(T U)

    Other kernels than 4x4 at stride 2 and padding 1, and images of odd height or width, go through ConvTranspose2d.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kernel_workspace = Workspace()

    def forward(self, x):
        self._check_images(x)
        n, h, w, _ = self.input_shape = x.shape
        self.fast = in_whole_tiles(self.geometry, 2 * h, 2 * w)
        if not self.fast:
            return super().forward(x)
        spread = self.workspace.get("spread", (3, 3, n, h // 2, w // 2, self.inputs), x.dtype)
        nine_of_four(quads_of(x), spread, self.workspace)
        self.spread = spread.reshape(9, -1, self.inputs)
        self.kernels = kernels_of(self.weight.value, self.kernel_workspace)
        tiles = self.workspace.get("tiles of y", (9, self.spread.shape[1], 4 * self.outputs), x.dtype)
        xp.matmul(self.spread, self.kernels.swapaxes(1, 2), out=tiles)
        return images_of(tiles, (n, 2 * h, 2 * w, self.outputs), self.workspace, self.bias.value, self.slope)

    def backward(self, dy):
        if not self.fast:
            return super().backward(dy)
        n, h, w, _ = self.input_shape
        tiles = tiles_of(dy, self.workspace)
        kernel_gradient(tiles, self.spread, self.weight.grad, self.kernel_workspace)
        self.bias.grad[...] = sum_rows(dy)
        products = self.workspace.get("products", (3, 3, n, h // 2, w // 2, self.inputs), dy.dtype)
        xp.matmul(tiles, self.kernels, out=products.reshape(9, -1, self.inputs))
        dx = xp.empty(self.input_shape, dy.dtype)
        four_of_nine(products, quads_of(dx), self.workspace)
        return dx
