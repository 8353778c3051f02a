"""The core's layers, likelihoods and Adam with arrays that are kept and fewer passes over memory.

What is kept makes a layer one thread's at a time: for threads a model has replicas (workers.py).

Large new arrays cost page faults, and every operation on one that no longer fits into a core's cache costs its way from
memory and back. On a GPU a function marked `on_gpu` gives way to a kernel of gpu.py.
"""

import math

import numpy as np

from vae_np.backend import xp
from vae_np.conv import Conv2d, ConvTranspose2d, conv_size
from vae_np.fast import gpu
from vae_np.fast.gpu import on_gpu
from vae_np.fast.products import few, prepared, product, product_of_columns, strips
from vae_np.layers import Dense, LeakyReLU
from vae_np.losses import Bernoulli, CalibratedGaussian, Gaussian, sigmoid
from vae_np.optim import Adam

# Numbers of Adam updated at a time: so few that the core's caches are some help between the operations on them, and so
# many that threads seldom wait for Python's lock.
BLOCK = 1 << 18


class Workspace:
    """Memory that is kept from one call to the next."""

    def __init__(self):
        self.memory = {}

    def get(self, name, shape, dtype):
        """An array of this shape and dtype, with whatever its memory last held; what has another name keeps its own."""
        size, memory = math.prod(shape), self.memory.get(name)
        if memory is None or memory.size < size or memory.dtype != dtype:
            memory = self.memory[name] = xp.empty(size, dtype)
        return memory[:size].reshape(shape)


def cut(count, size):
    """Slices of at most `size` that make up range(count); one, where that is empty."""
    return [slice(start, min(start + size, count)) for start in range(0, max(1, count), size)]


def padded(x, padding, workspace):
    """Images x (N, H, W, C) with a border of zeros, in the workspace."""
    (n, h, w, c), p = x.shape, padding
    y = workspace.get("padded", (n, h + 2 * p, w + 2 * p, c), x.dtype)
    for border in (y[:, :p], y[:, p + h :], y[:, :, :p], y[:, :, p + w :]):
        border[...] = 0
    y[:, p : p + h, p : p + w] = x
    return y


def sum_rows(dy):
    """layers.sum_rows in two steps, a wide one and a small one.

    Adding up hundreds of thousands of rows of 3 numbers one by one is slow, and in float32 it rounds more.
    """
    if gpu.IN_USE:
        dy = dy.reshape(-1, dy.shape[-1])
        return gpu.ones(len(dy), dy.dtype.char) @ dy  # CuPy gives a sum over rows to few threads, a product to all
    if dy.ndim > 2:
        dy = dy.reshape(-1, dy.shape[-2] * dy.shape[-1]).sum(axis=0).reshape(-1, dy.shape[-1])
    return dy.sum(axis=0)


def add_bias(y, bias):
    """Add a bias (C,) to images y (N, H, W, C), in place, a row of pixels at a time: NumPy is slow on short runs."""
    if gpu.IN_USE:
        y += bias
    else:
        rows = y.reshape(-1, y.shape[-2] * y.shape[-1])
        rows += np.tile(bias, y.shape[-2])


@on_gpu(gpu.leaky)
def leaky(x, slope):
    """LeakyReLU(slope) of x, in a new array."""
    y = slope * x
    return xp.maximum(x, y, out=y)


@on_gpu(gpu.leaky_gradient)
def leaky_gradient(y, dy, slope):
    """dy where y > 0, else slope * dy. Arithmetic on 1 and 0, since xp.where is several times slower."""
    dx = xp.greater(y, 0, out=xp.empty_like(dy))
    dx *= 1 - slope
    dx += slope
    dx *= dy
    return dx


@on_gpu(gpu.unfold)
def unfold(x, kernel_size, stride, padding, workspace):
    """conv.unfold into a matrix of the workspace, valid until the next call with the same workspace."""
    n, h, w, c = x.shape
    k = kernel_size
    oh, ow = conv_size(h, k, stride, padding), conv_size(w, k, stride, padding)
    x = padded(x, padding, workspace)
    # A view in which every patch has axes of its own: a step from patch to patch is `stride` pixels, inside one is one.
    image, row, column, channel = x.strides
    shape = (n, oh, ow, k, k, c)
    strides = (image, stride * row, stride * column, row, column, channel)
    patches = workspace.get("patches", shape, x.dtype)
    patches[...] = xp.lib.stride_tricks.as_strided(x, shape, strides)
    return patches.reshape(n * oh * ow, k * k * c)


@on_gpu(gpu.fold)
def fold(patches, shape, kernel_size, stride, padding, workspace, y=None):
    """conv.fold into y, or into a new array."""
    n, h, w, c = shape
    k = kernel_size
    oh, ow = conv_size(h, k, stride, padding), conv_size(w, k, stride, padding)
    # Where the stride divides the kernel, `stride` neighbours in a row of all patches lie side by side in the image,
    # without gaps: they are added as one run, which is several times faster for images of few channels.
    run = stride if k % stride == 0 else 1
    step = stride // run
    columns = -(-(w + 2 * padding) // run)
    patches = patches.reshape(n, oh, ow, k, k // run, run * c)
    sums = workspace.get("sums", (n, h + 2 * padding, columns, run * c), patches.dtype)
    sums[...] = 0
    for i in range(k):
        for j in range(k // run):
            sums[:, i : i + stride * oh : stride, j : j + step * ow : step] += patches[:, :, :, i, j]
    sums = sums.reshape(n, h + 2 * padding, columns * run, c)
    y = xp.empty(shape, patches.dtype) if y is None else y
    y[...] = sums[:, padding : padding + h, padding : padding + w]
    return y


class FastDense(Dense):
    """A Dense that makes y and dx transposed where x has few rows, since BLAS would pack the weight for them.

        forward    y^T = W^T x^T        backward   dW = x^T dy     dx^T = W dy^T
    """

    def forward(self, x):
        if not few(x):
            return super().forward(x)
        self.x = x = self.rate * x
        weight = self.weight.value
        y = np.empty((weight.shape[1], len(x)), np.result_type(x, weight))
        return product_of_columns(weight, np.ascontiguousarray(x.T), y).T + self.bias.value

    def backward(self, dy):
        if not few(dy):
            return super().backward(dy)
        product(self.x.T, strips(dy), self.weight.grad)
        self.bias.grad[...] = sum_rows(dy)
        weight = self.weight.value
        dx = np.empty((len(weight), len(dy)), np.result_type(dy, weight))
        return product(weight, strips(np.ascontiguousarray(self.rate * dy.T)), dx).T


class FastLeakyReLU(LeakyReLU):
    """A LeakyReLU in fewer passes."""

    def forward(self, x):
        self.y = y = leaky(x, self.slope)
        return y

    def backward(self, dy):
        return leaky_gradient(self.y, dy, self.slope)


class Unfolding:
    """One way to compute a convolution: y = output(input(x) kernels(weight)), linear maps around a product.

        x, the larger side   -> input ->    patches  \\
        weight               -> kernels ->  matrix   --> products = patches @ matrix -> output -> y, the smaller side

    Here `input` unfolds and the other two only reshape; winograd.py and planes.py have other ways. With the adjoints of
    the maps FastConv2d has its gradients, and FastConvTranspose2d all that it computes. What a map makes it writes to
    an array that is given, or to one of a name, which is kept, and valid until the next call with that name.
    """

    def __init__(self, geometry):
        self.geometry, self.workspace = geometry, Workspace()

    def groups(self, shape):
        """Slices of images (N, H, W, C) of the larger side that go through the layer one after the other.

        Here it is one, of all: `input` has one matrix whatever the name, and a second group would overwrite the first.
        """
        return [slice(0, shape[0])]

    def input(self, x, name):
        """x (N, H, W, C) -> patches."""
        return unfold(x, *self.geometry, self.workspace)

    def input_adjoint(self, patches, x):
        """Patches -> images x, which are written to."""
        fold(patches, x.shape, *self.geometry, self.workspace, x)

    def patches_for(self, x):
        """Where products can be written that are patches of images of x's shape."""
        n, h, w, c = x.shape
        k, s, p = self.geometry
        rows = n * conv_size(h, k, s, p) * conv_size(w, k, s, p)
        return self.workspace.get("products of patches", (rows, k * k * c), x.dtype)

    def kernels(self, weight):
        """The kernels as the matrix that patches are multiplied with."""
        return weight.reshape(-1, weight.shape[-1])

    def prepared(self, matrix, x):
        """That matrix, or its transpose, as `product` wants it; x has the shape of the larger side."""
        return prepared(matrix, rows=0)

    def kernel_sums(self, grad):
        """Where the gradient of that matrix can be added up."""
        return grad.reshape(-1, grad.shape[-1])

    def kernels_adjoint(self, sums, grad):
        """The gradient of the matrix -> that of the weight, which is written to; here they are one."""

    def products_for(self, y, name):
        """Where products can be written that make y (N, OH, OW, F)."""
        return y.reshape(-1, y.shape[-1])

    def output(self, products, y):
        """Products -> y, which is written to; here they are one."""

    def output_adjoint(self, dy, name):
        """dy (N, OH, OW, F) -> the gradient of the products."""
        return dy.reshape(-1, dy.shape[-1])

    def add_product(self, sums, patches, dproducts, first):
        """sums += patches^T dproducts, what a group adds to the gradient of the kernels; `=` for the first."""
        total = sums if first else self.workspace.get("product", sums.shape, sums.dtype)
        product_of_columns(patches, dproducts, total)
        if not first:
            sums += total


class InOneWay:
    """What FastConv2d and FastConvTranspose2d share: they unfold, whatever the shape of the larger side."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unfolding = Unfolding(self.geometry)

    def way_for(self, shape):
        """The way for images of this shape (N, H, W, C) on the larger side of the layer."""
        return self.unfolding

    def begin(self, x):
        """x in the dtype that its product with the weight has, and an array for y; their shapes are kept."""
        dtype = np.result_type(x.dtype, self.weight.value.dtype)
        x = x if x.dtype == dtype else x.astype(dtype)
        y = xp.empty(self.output_shape(x), dtype)
        self.input_shape, self.shape = x.shape, y.shape
        return x, y


class FastConv2d(InOneWay, Conv2d):
    """A Conv2d by the maps of a way, for each group of images.

        forward    T = input(x)     K = kernels(weight)     y = output(T K) + b
        backward   dM = output_adjoint(dy)     dK = T^T dM, added up     dx = input_adjoint(dM K^T)
    """

    def forward(self, x):
        x, y = self.begin(x)
        self.way = way = self.way_for(x.shape)
        self.groups, self.tiles, self.matrix = way.groups(x.shape), [], way.kernels(self.weight.value)
        matrix = way.prepared(self.matrix, x)
        for part in self.groups:
            self.tiles.append(way.input(x[part], ("tiles", part.start)))
            products = way.products_for(y[part], "products")
            way.output(product(self.tiles[-1], matrix, products), y[part])
            add_bias(y[part], self.bias.value)
        return y

    def backward_parameters(self, dy):
        self._backward(dy)

    def backward(self, dy):
        dx = xp.empty(self.input_shape, dy.dtype)
        self._backward(dy, dx)
        return dx

    def _backward(self, dy, dx=None):
        """Write the parameters' gradients, and dL/dx to dx, if it is given."""
        way, dy = self.way, dy.reshape(self.shape)
        sums = way.kernel_sums(self.weight.grad)
        matrix = None if dx is None else way.prepared(self.matrix.swapaxes(-1, -2), dx)
        for part, tiles in zip(self.groups, self.tiles, strict=True):
            dproducts = way.output_adjoint(dy[part], "products")
            way.add_product(sums, tiles, dproducts, first=part.start == 0)
            if dx is not None:
                dtiles = way.patches_for(dx[part])
                way.input_adjoint(product(dproducts, matrix, dtiles), dx[part])
        way.kernels_adjoint(sums, self.weight.grad)
        self.bias.grad[...] = sum_rows(dy)


class FastConvTranspose2d(InOneWay, ConvTranspose2d):
    """A ConvTranspose2d by the maps of a way: FastConv2d read backwards.

        forward    M = output_adjoint(x)     K = kernels(weight)     y = input_adjoint(M K^T) + b
        backward   T = input(dy)     dK = T^T M, added up     dx = output(T K)
    """

    def forward(self, x):
        x, y = self.begin(x)
        self.way = way = self.way_for(y.shape)
        self.groups, self.spread, self.matrix = way.groups(y.shape), [], way.kernels(self.weight.value)
        matrix = way.prepared(self.matrix.swapaxes(-1, -2), y)
        for part in self.groups:
            self.spread.append(way.output_adjoint(x[part], ("spread", part.start)))
            way.input_adjoint(product(self.spread[-1], matrix, way.patches_for(y[part])), y[part])
            add_bias(y[part], self.bias.value)
        return y

    def backward(self, dy):
        way, dy, dx = self.way, dy.reshape(self.shape), xp.empty(self.input_shape, dy.dtype)
        matrix = way.prepared(self.matrix, dy)
        sums = way.kernel_sums(self.weight.grad)
        for part, spread in zip(self.groups, self.spread, strict=True):
            tiles = way.input(dy[part], "tiles")
            way.add_product(sums, tiles, spread, first=part.start == 0)
            products = way.products_for(dx[part], "products")
            way.output(product(tiles, matrix, products), dx[part])
        way.kernels_adjoint(sums, self.weight.grad)
        self.bias.grad[...] = sum_rows(dy)
        return dx


@on_gpu(gpu.cross_entropy)
def cross_entropy(logits, x, scale):
    """scale * sum [softplus(l) - x l], and its gradient scale * (sigmoid(l) - x).

    sigmoid(l) = exp(l - softplus(l)), where softplus is at hand already. Not log1p, which takes four times as long:
    where it differs from log, the result is about the rounding of 1, and what it is added up with is much larger.
    """
    softplus = xp.exp(-xp.abs(logits))
    softplus += 1
    xp.log(softplus, out=softplus)
    softplus += xp.maximum(logits, 0)
    total = (softplus - x * logits).sum() * scale
    dlogits = xp.exp(logits - softplus)
    dlogits -= x
    dlogits *= scale
    return total, dlogits


class FastBernoulli(Bernoulli):
    """A Bernoulli likelihood with softplus worked out once."""

    def __call__(self, logits, x):
        """losses.Bernoulli."""
        return cross_entropy(logits, x, 1 / len(x))


@on_gpu(gpu.squared_error)
def squared_error(logits, x):
    """losses.Gaussian.squared_error."""
    mean = sigmoid(logits)
    error = mean - x
    return xp.vdot(error, error), error * mean * (1 - mean)


class FastGaussian(Gaussian):
    """A Gaussian likelihood in fewer passes."""

    def squared_error(self, logits, x):
        """losses.Gaussian.squared_error."""
        return squared_error(logits, x)


class FastCalibratedGaussian(FastGaussian, CalibratedGaussian):
    """A calibrated Gaussian in fewer passes."""


@on_gpu(gpu.adam_step)
def adam_step(values, grads, m, v, beta1, beta2, epsilon, m_scale, v_scale):
    """The three lines of optim.Adam on flat arrays, in place and in blocks.

    The learning rate and both corrections are in the scales: values -= m_scale * m / (v_scale * sqrt(v) + epsilon).
    """
    scratch = xp.empty_like(values[:BLOCK])
    for start in range(0, values.size, BLOCK):
        part = slice(start, start + BLOCK)
        g, m_part, v_part = grads[part], m[part], v[part]
        t = scratch[: g.size]
        xp.subtract(g, m_part, out=t)
        t *= 1 - beta1
        m_part += t
        xp.multiply(g, g, out=t)
        t -= v_part
        t *= 1 - beta2
        v_part += t
        xp.sqrt(v_part, out=t)
        t *= v_scale
        t += epsilon
        xp.divide(m_part, t, out=t)
        t *= m_scale
        values[part] -= t


class FastAdam(Adam):
    """Adam a block at a time; `model` is one whose threads share the work, or None."""

    model = None

    def update(self, learning_rate):
        """Take one step against the gradient."""
        self.step += 1
        m_scale = learning_rate / (1 - self.beta1**self.step)
        v_scale = 1 / math.sqrt(1 - self.beta2**self.step)

        def step(part):
            arrays = (array[part] for array in (self.values, self.grads, self.m, self.v))
            adam_step(*arrays, self.beta1, self.beta2, self.epsilon, m_scale, v_scale)

        if self.model is None or self.model.workers.threads == 1:
            step(slice(None))
        else:
            self.model.workers.divide(step, self.values.size)
