"""Layers of images: Conv2d and ConvTranspose2d, unfold -> matmul -> fold; Shrink and Enlarge.

Images are (N, H, W, C). `unfold` lays every patch that a kernel sees out as one row of a matrix, so that a convolution
is a matrix product; `fold` is its adjoint and adds each row back where unfold took it from. A transposed convolution is
a convolution read backwards. Both are made of the same two functions, with the roles swapped.
"""

import functools

from vae_np.backend import xp
from vae_np.errors import InputError
from vae_np.layers import Layer, Parameter, random_weight, sum_rows


def conv_size(size, kernel_size, stride, padding):
    """The height or width of a convolution's output: in how many places the kernel fits."""
    return (size + 2 * padding - kernel_size) // stride + 1


def conv_transpose_size(size, kernel_size, stride, padding):
    """The height or width of a transposed convolution's output."""
    return (size - 1) * stride + kernel_size - 2 * padding


def unfold(x, kernel_size, stride, padding):
    """The patches of x (N, H, W, C) as rows of a matrix (N * OH * OW, K * K * C), zeros where a patch leaves the image.

    With a border of p = padding zeros around x, row (n, i, j) is padded[n, i * s : i * s + K, j * s : j * s + K, :],
    flattened; s is the stride. Pixel (a, b) of all patches is every s-th pixel of the padded image, from (a, b) on.
    """
    n, h, w, c = x.shape
    k, s, p = kernel_size, stride, padding
    oh, ow = conv_size(h, k, s, p), conv_size(w, k, s, p)
    padded = xp.zeros((n, h + 2 * p, w + 2 * p, c), x.dtype)
    padded[:, p : p + h, p : p + w] = x
    patches = xp.empty((n, oh, ow, k, k, c), x.dtype)
    for a in range(k):
        for b in range(k):
            patches[:, :, :, a, b] = padded[:, a : a + s * oh : s, b : b + s * ow : s]
    return patches.reshape(n * oh * ow, k * k * c)


def fold(patches, shape, kernel_size, stride, padding):
    """Add patches back into images: the adjoint of unfold, (N * OH * OW, K * K * C) -> shape (N, H, W, C).

    Where unfold copies a pixel into every patch that sees it, fold adds all these copies up: the same double loop, with
    the two sides of the assignment swapped.
    """
    n, h, w, c = shape
    k, s, p = kernel_size, stride, padding
    oh, ow = conv_size(h, k, s, p), conv_size(w, k, s, p)
    patches = patches.reshape(n, oh, ow, k, k, c)
    padded = xp.zeros((n, h + 2 * p, w + 2 * p, c), patches.dtype)
    for a in range(k):
        for b in range(k):
            padded[:, a : a + s * oh : s, b : b + s * ow : s] += patches[:, :, :, a, b]
    return padded[:, p : p + h, p : p + w]


class Convolution(Layer):
    """What Conv2d and ConvTranspose2d share: channels, geometry, kernels and bias, and the check of the input.

    gain is the one of random_weight, rng a NumPy generator. Subclasses say what shape their kernels have, how many
    products one output sums (fan_in), and how large an output is.
    """

    def __init__(self, inputs, outputs, kernel_size, rng, stride=1, padding=0, gain=1.0, dtype="float32"):
        self.inputs, self.outputs = inputs, outputs
        self.geometry = (kernel_size, stride, padding)
        shape, fan_in = self._kernels()
        self.weight = Parameter("weight", random_weight(rng, shape, fan_in, gain, dtype))
        self.bias = Parameter("bias", xp.zeros(outputs, dtype))
        self.parameters = (self.weight, self.bias)

    def output_shape(self, x):
        """The shape of y (N, OH, OW, F). Raises InputError for an x that is not (N, H, W, C), or too small."""
        if x.ndim != 4 or x.shape[-1] != self.inputs:
            raise InputError(f"{self!r} expects images (N, H, W, {self.inputs}) but got an array of shape {x.shape}")
        n, h, w, _ = x.shape
        oh, ow = self._size(h, *self.geometry), self._size(w, *self.geometry)
        if oh < 1 or ow < 1:
            raise InputError(f"{self!r} got an image of {h}x{w}, {self._too_small}")
        return n, oh, ow, self.outputs

    def __repr__(self):
        kernel_size, stride, padding = self.geometry
        return (f"{self.name}({self.inputs} -> {self.outputs}, {kernel_size}x{kernel_size}, stride {stride}, "
                f"padding {padding})")


class Conv2d(Convolution):
    """Cross-correlate images with a bank of kernels: x (N, H, W, C) -> y (N, OH, OW, F).

    OH = (H + 2 * padding - kernel_size) // stride + 1, and OW likewise. With the patches of x laid out as the rows of a
    matrix P = unfold(x), the layer is one matrix product; weight (K, K, C, F) is read as a matrix W (K * K * C, F).

        forward    y = P W + b
        backward   dW = P^T dy     db = sum of dy over N, OH, OW     dx = fold(dy W^T)

    Raises InputError for an input that is not (N, H, W, C) or smaller than the kernel.
    """

    name, _size, _too_small = "Conv2d", staticmethod(conv_size), "smaller than its kernel"

    def _kernels(self):
        kernel_size, _, _ = self.geometry
        return (kernel_size, kernel_size, self.inputs, self.outputs), self.inputs * kernel_size**2

    def forward(self, x):
        shape = self.output_shape(x)
        self.input_shape = x.shape
        self.patches = patches = unfold(x, *self.geometry)
        y = patches @ self.weight.value.reshape(-1, self.outputs) + self.bias.value
        return y.reshape(shape)

    def backward_parameters(self, dy):
        self.weight.grad[...] = (self.patches.T @ dy.reshape(-1, self.outputs)).reshape(self.weight.value.shape)
        self.bias.grad[...] = sum_rows(dy)

    def backward(self, dy):
        self.backward_parameters(dy)
        dpatches = dy.reshape(-1, self.outputs) @ self.weight.value.reshape(-1, self.outputs).T
        return fold(dpatches, self.input_shape, *self.geometry)


class ConvTranspose2d(Convolution):
    """The adjoint of a convolution: x (N, H, W, C) -> y (N, OH, OW, F), with OH = (H - 1) * stride + K - 2 * padding.

    Every pixel of x adds a kernel, scaled by its channels, to the output, `stride` pixels apart. Where Conv2d unfolds
    and multiplies, this layer multiplies and folds. weight (K, K, F, C) holds the kernels of the convolution from F to
    C channels whose adjoint this is; read as a matrix W (K * K * F, C):

        forward    y = fold(x W^T) + b
        backward   D = unfold(dy)     dW = D^T x     db = sum of dy over N, OH, OW     dx = D W

    An output pixel is the sum of C * K * K / stride^2 products, which sets the scale of the initial weights.
    Kernels of 4x4 at stride 2 overlap evenly; 3x3 would leave a checkerboard (Odena et al. 2016).
    Raises InputError for an input that is not (N, H, W, C) or so small that the padding leaves nothing of the output.
    """

    name, _size = "ConvTranspose2d", staticmethod(conv_transpose_size)
    _too_small = "of which its padding leaves nothing"

    def _kernels(self):
        kernel_size, stride, _ = self.geometry
        return (kernel_size, kernel_size, self.outputs, self.inputs), self.inputs * kernel_size**2 / stride**2

    def forward(self, x):
        shape = self.output_shape(x)
        self.input_shape, self.x = x.shape, x.reshape(-1, self.inputs)
        patches = x.reshape(-1, self.inputs) @ self.weight.value.reshape(-1, self.inputs).T
        return fold(patches, shape, *self.geometry) + self.bias.value

    def backward(self, dy):
        d = unfold(dy, *self.geometry)
        self.weight.grad[...] = (d.T @ self.x).reshape(self.weight.value.shape)
        self.bias.grad[...] = sum_rows(dy)
        return (d @ self.weight.value.reshape(-1, self.inputs)).reshape(self.input_shape)


class Shrink(Layer):
    """Average over blocks of factor x factor pixels: x (N, H, W, C) -> y (N, H / factor, W / factor, C).

        backward   dx = dy / factor^2, repeated for each pixel of the block
    """

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        (n, h, w, c), f = x.shape, self.factor
        return x.reshape(n, h // f, f, w // f, f, c).mean(axis=2).mean(axis=3)

    def backward(self, dy):
        (n, h, w, c), f = dy.shape, self.factor
        return xp.broadcast_to(dy[:, :, None, :, None] / f**2, (n, h, f, w, f, c)).reshape(n, h * f, w * f, c)

    def __repr__(self):
        return f"Shrink({self.factor})"


class Enlarge(Layer):
    """Interpolate linearly between pixels: x (N, H, W, C) -> y (N, H * factor, W * factor, C).

    Along a column or a row, a small pixel whose centre lies t of the way from one large pixel's centre to the next is
    1 - t times the one and t times the other; where there is no next, it is the one. As matrices U (H * factor, H) and
    V (W * factor, W) of these weights, for each channel:

        forward    y = U x V^T
        backward   dx = U^T dy V
    """

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        _, h, w, _ = x.shape
        return along_axes(x, interpolation(h, self.factor, x.dtype), interpolation(w, self.factor, x.dtype))

    def backward(self, dy):
        _, h, w, _ = dy.shape
        u, v = (interpolation(size // self.factor, self.factor, dy.dtype) for size in (h, w))
        return along_axes(dy, u.T, v.T)

    def __repr__(self):
        return f"Enlarge({self.factor})"


@functools.cache
def interpolation(size, factor, dtype):
    """The weights (size * factor, size) of linear interpolation between `size` pixels; see Enlarge."""
    centres = (xp.arange(size * factor) + 0.5) / factor - 0.5
    return xp.maximum(0, 1 - xp.abs(centres.clip(0, size - 1)[:, None] - xp.arange(size))).astype(dtype)


def along_axes(x, a, b):
    """Multiply every column of images x (N, H, W, C) by a (A, H), every row by b (B, W): (N, A, B, C)."""
    n, h, w, c = x.shape
    y = a @ x.reshape(n, h, w * c)
    return (b @ y.reshape(-1, w, c)).reshape(n, len(a), len(b), c)
