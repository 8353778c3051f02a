"""The core's layers, likelihoods and Adam with arrays that are kept and fewer passes over memory.

Large new arrays cost page faults, and every operation on one that no longer fits into a core's cache costs its way from
memory and back. On a GPU a function marked `on_gpu` gives way to a kernel of gpu.py.
"""

import math

from vae_np.backend import xp
from vae_np.conv import Conv2d, ConvTranspose2d, conv_size
from vae_np.fast import gpu
from vae_np.fast.gpu import on_gpu
from vae_np.layers import LeakyReLU
from vae_np.losses import Bernoulli, CalibratedGaussian, Gaussian, sigmoid
from vae_np.optim import Adam

# Numbers of Adam updated at a time, so that the arrays of a block stay in cache between the operations on them.
BLOCK = 1 << 14


class Workspace:
    """Arrays that are kept from one call to the next."""

    def __init__(self):
        self.arrays = {}

    def get(self, name, shape, dtype):
        """An array of this shape and dtype, with whatever it last held, or zeros where it is new.

        unfold relies on the zeros of a border that it never writes to: one workspace serves one padding.
        """
        array = self.arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self.arrays[name] = xp.zeros(shape, dtype)
        return array


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


@on_gpu(gpu.leaky)
def leaky(x, slope):
    """LeakyReLU(slope) of x, in a new array."""
    y = slope * x
    return xp.maximum(x, y, out=y)


@on_gpu(gpu.leaky_gradient)
def leaky_gradient(y, dy, slope):
    """dy where y > 0, else slope * dy. Arithmetic on a mask, since xp.where is several times slower."""
    dx = (y > 0).astype(dy.dtype)
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
    padded = workspace.get("padded", (n, h + 2 * padding, w + 2 * padding, c), x.dtype)
    padded[:, padding : padding + h, padding : padding + w] = x  # the border keeps its zeros
    # A view in which every patch has axes of its own: a step from patch to patch is `stride` pixels, inside one is one.
    image, row, column, channel = padded.strides
    shape = (n, oh, ow, k, k, c)
    strides = (image, stride * row, stride * column, row, column, channel)
    patches = workspace.get("patches", shape, x.dtype)
    patches[...] = xp.lib.stride_tricks.as_strided(padded, shape, strides)
    return patches.reshape(n * oh * ow, k * k * c)


@on_gpu(gpu.fold)
def fold(patches, shape, kernel_size, stride, padding, workspace):
    """conv.fold into a new array."""
    n, h, w, c = shape
    k = kernel_size
    oh, ow = conv_size(h, k, stride, padding), conv_size(w, k, stride, padding)
    # Where the stride divides the kernel, `stride` neighbours in a row of all patches lie side by side in the image,
    # without gaps: they are added as one run, which is several times faster for images of few channels.
    run = stride if k % stride == 0 else 1
    step = stride // run
    columns = -(-(w + 2 * padding) // run)
    patches = patches.reshape(n, oh, ow, k, k // run, run * c)
    padded = workspace.get("sums", (n, h + 2 * padding, columns, run * c), patches.dtype)
    padded[...] = 0
    for i in range(k):
        for j in range(k // run):
            padded[:, i : i + stride * oh : stride, j : j + step * ow : step] += patches[:, :, :, i, j]
    padded = padded.reshape(n, h + 2 * padding, columns * run, c)
    return padded[:, padding : padding + h, padding : padding + w].copy()


class FastLeakyReLU(LeakyReLU):
    """A LeakyReLU in fewer passes."""

    def forward(self, x):
        self.y = y = leaky(x, self.slope)
        return y

    def backward(self, dy):
        return leaky_gradient(self.y, dy, self.slope)


class Unfolding:
    """One way to compute a convolution: y = output(input(x) kernels(weight)), linear maps around a product.

    Here `input` unfolds and the other two only reshape; winograd.Winograd is another way. With the adjoints of the maps
    FastConv2d has its gradients, and FastConvTranspose2d all that it computes. Arrays with a name are kept, and valid
    until the next call.
    """

    def __init__(self, geometry):
        self.geometry, self.workspace = geometry, Workspace()

    def input(self, x):
        """x (N, H, W, C) -> patches."""
        return unfold(x, *self.geometry, self.workspace)

    def input_adjoint(self, patches, shape):
        """Patches -> new images of this shape."""
        return fold(patches, shape, *self.geometry, self.workspace)

    def kernels(self, weight):
        """The kernels as the matrix that patches are multiplied with."""
        return weight.reshape(-1, weight.shape[-1])

    def kernel_gradient(self, patches, dproducts, grad):
        """Write the gradient of the weight, given that of the products."""
        xp.matmul(patches.T, dproducts, out=grad.reshape(-1, grad.shape[-1]))

    def output(self, products, shape):
        """Products -> y of this shape (N, OH, OW, F)."""
        return products.reshape(shape)

    def output_adjoint(self, dy, name):
        """dy (N, OH, OW, F) -> the gradient of the products."""
        return dy.reshape(-1, dy.shape[-1])

    def product(self, name, a, b):
        """a @ b. What `output` hands on is a new array, since the layers after this keep it."""
        out = None if name == "products" else self.workspace.get(name, (len(a), b.shape[1]), a.dtype)
        return xp.matmul(a, b, out=out)


class InOneWay:
    """What FastConv2d and FastConvTranspose2d share: they unfold, whatever the shape of the larger side."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unfolding = Unfolding(self.geometry)

    def way_for(self, shape):
        """The way for images of this shape (N, H, W, C) on the larger side of the layer."""
        return self.unfolding


class FastConv2d(InOneWay, Conv2d):
    """A Conv2d by the maps of a way.

        forward    T = input(x)     K = kernels(weight)     y = output(T K) + b
        backward   dM = output_adjoint(dy)     dK = T^T dM     dx = input_adjoint(dM K^T)
    """

    def forward(self, x):
        shape, self.input_shape = self.output_shape(x), x.shape
        self.way = self.way_for(x.shape)
        self.tiles, self.matrix = self.way.input(x), self.way.kernels(self.weight.value)
        y = self.way.output(self.way.product("products", self.tiles, self.matrix), shape)
        y += self.bias.value
        return y

    def backward_parameters(self, dy):
        self.dproducts = self.way.output_adjoint(dy, "products")
        self.way.kernel_gradient(self.tiles, self.dproducts, self.weight.grad)
        self.bias.grad[...] = sum_rows(dy)

    def backward(self, dy):
        self.backward_parameters(dy)
        dtiles = self.way.product("dtiles", self.dproducts, self.matrix.swapaxes(-1, -2))
        return self.way.input_adjoint(dtiles, self.input_shape)


class FastConvTranspose2d(InOneWay, ConvTranspose2d):
    """A ConvTranspose2d by the maps of a way: FastConv2d read backwards.

        forward    M = output_adjoint(x)     K = kernels(weight)     y = input_adjoint(M K^T) + b
        backward   T = input(dy)     dK = T^T M     dx = output(T K)
    """

    def forward(self, x):
        shape, self.input_shape = self.output_shape(x), x.shape
        self.way = self.way_for(shape)
        self.spread, self.matrix = self.way.output_adjoint(x, "spread"), self.way.kernels(self.weight.value)
        y = self.way.input_adjoint(self.way.product("tiles", self.spread, self.matrix.swapaxes(-1, -2)), shape)
        y += self.bias.value
        return y

    def backward(self, dy):
        tiles = self.way.input(dy)
        self.way.kernel_gradient(tiles, self.spread, self.weight.grad)
        self.bias.grad[...] = sum_rows(dy)
        return self.way.output(self.way.product("products", tiles, self.matrix), self.input_shape)


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
    """Adam a block at a time, which stays in cache."""

    def update(self, learning_rate):
        """Take one step against the gradient."""
        self.step += 1
        m_scale = learning_rate / (1 - self.beta1**self.step)
        v_scale = 1 / math.sqrt(1 - self.beta2**self.step)
        adam_step(self.values, self.grads, self.m, self.v, self.beta1, self.beta2, self.epsilon, m_scale, v_scale)
