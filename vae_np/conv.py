"""Conv2d and ConvTranspose2d: unfold -> matmul -> fold.

Images are (N, H, W, C). `unfold` lays every patch that a kernel sees out as one row of a matrix, so that a convolution
is a matrix product; `fold` is its adjoint and adds each row back where unfold took it from. A transposed convolution is
a convolution read backwards. Both layers are made of the same two functions, with the roles swapped.
"""

from vae_np.backend import on_gpu, xp
from vae_np.errors import InputError
from vae_np.fast import gpu as kernels
from vae_np.layers import Layer, Parameter, add_bias, random_weight, sum_rows


def conv_size(size, kernel_size, stride, padding):
    """The height or width of a convolution's output: in how many places the kernel fits."""
    return (size + 2 * padding - kernel_size) // stride + 1


def conv_transpose_size(size, kernel_size, stride, padding):
    """The height or width of a transposed convolution's output."""
    return (size - 1) * stride + kernel_size - 2 * padding


class Workspace:
    """Arrays that are kept from one call to the next, since large new ones cost page faults."""

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


@on_gpu(kernels.unfold)
def unfold(x, kernel_size, stride, padding, workspace):
    """The patches of x (N, H, W, C) as rows of a matrix (N * OH * OW, K * K * C), zeros where a patch leaves the image.

    Row (n, i, j) is x[n, i * s - p : i * s - p + K, j * s - p : j * s - p + K, :], flattened; s is the stride, p the
    padding. The matrix belongs to the workspace and is valid until the next call with the same workspace.
    """
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


@on_gpu(kernels.fold)
def fold(patches, shape, kernel_size, stride, padding, workspace, bias=None, slope=1.0):
    """Add patches back into images: the adjoint of unfold, (N * OH * OW, K * K * C) -> shape (N, H, W, C).

    Pixel (i, j) of a kernel meets every stride-th pixel of the padded image, from (i, j) on. A loop over these offsets
    adds all patches, each time one pixel of every patch. Returns a new array, through add_bias where a bias is given.
    """
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
    y = padded[:, padding : padding + h, padding : padding + w].copy()
    return y if bias is None else add_bias(y, bias, slope)


class Convolution(Layer):
    """What Conv2d and ConvTranspose2d share: channels, geometry, kernels and bias, and the check of the input.

    gain is the one of random_weight, rng a NumPy generator. Subclasses say what shape their kernels have, and how many
    products one output sums (fan_in).
    """

    slope = 1.0

    def __init__(self, inputs, outputs, kernel_size, rng, stride=1, padding=0, gain=1.0, dtype="float32"):
        self.inputs, self.outputs = inputs, outputs
        self.geometry = (kernel_size, stride, padding)
        shape, fan_in = self._kernels()
        self.weight = Parameter("weight", random_weight(rng, shape, fan_in, gain, dtype))
        self.bias = Parameter("bias", xp.zeros(outputs, dtype))
        self.parameters = (self.weight, self.bias)
        self.workspace = Workspace()

    def _check_images(self, x):
        if x.ndim != 4 or x.shape[-1] != self.inputs:
            raise InputError(f"{self!r} expects images (N, H, W, {self.inputs}) but got an array of shape {x.shape}")

    def __repr__(self):
        kernel_size, stride, padding = self.geometry
        return (f"{type(self).__name__}({self.inputs} -> {self.outputs}, {kernel_size}x{kernel_size}, "
                f"stride {stride}, padding {padding})")


class Conv2d(Convolution):
    """Cross-correlate images with a bank of kernels: x (N, H, W, C) -> y (N, OH, OW, F).

    OH = (H + 2 * padding - kernel_size) // stride + 1, and OW likewise. With the patches of x laid out as the rows of a
    matrix P = unfold(x), the layer is one matrix product; weight (K, K, C, F) is read as a matrix W (K * K * C, F).

        forward    y = P W + b
        backward   dW = P^T dy     db = sum of dy over N, OH, OW     dx = fold(dy W^T)

    Raises InputError for an input that is not (N, H, W, C) or smaller than the kernel.
    """

    def _kernels(self):
        kernel_size, _, _ = self.geometry
        return (kernel_size, kernel_size, self.inputs, self.outputs), self.inputs * kernel_size**2

    def forward(self, x):
        self._check_images(x)
        n, h, w, _ = self.input_shape = x.shape
        oh, ow = conv_size(h, *self.geometry), conv_size(w, *self.geometry)
        if oh < 1 or ow < 1:
            raise InputError(f"{self!r} got an image of {h}x{w}, smaller than its kernel")
        self.patches = unfold(x, *self.geometry, self.workspace)
        y = self.patches @ self.weight.value.reshape(-1, self.outputs)
        return add_bias(y, self.bias.value, self.slope).reshape(n, oh, ow, self.outputs)

    def backward_parameters(self, dy):
        xp.matmul(self.patches.T, dy.reshape(-1, self.outputs), out=self.weight.grad.reshape(-1, self.outputs))
        self.bias.grad[...] = sum_rows(dy)

    def backward(self, dy):
        self.backward_parameters(dy)
        dpatches = self.workspace.get("dpatches", self.patches.shape, dy.dtype)
        xp.matmul(dy.reshape(-1, self.outputs), self.weight.value.reshape(-1, self.outputs).T, out=dpatches)
        return fold(dpatches, self.input_shape, *self.geometry, self.workspace)


class ConvTranspose2d(Convolution):
    """The adjoint of a convolution: x (N, H, W, C) -> y (N, OH, OW, F), with OH = (H - 1) * stride + K - 2 * padding.

    Every pixel of x adds a kernel, scaled by its channels, to the output, `stride` pixels apart. Where Conv2d unfolds
    and multiplies, this layer multiplies and folds. weight (K, K, F, C) holds the kernels of the convolution from F to
    C channels whose adjoint this is; read as a matrix W (K * K * F, C):

        forward    y = fold(x W^T) + b
        backward   D = unfold(dy)     dW = D^T x     db = sum of dy over N, OH, OW     dx = D W

    An output pixel is the sum of C * K * K / stride^2 products, whence the scale of the initial weights.
    Kernels of 4x4 at stride 2 overlap evenly; 3x3 would leave a checkerboard (Odena et al. 2016).
    Raises InputError for an input that is not (N, H, W, C) or so small that the padding leaves nothing of the output.
    """

    def _kernels(self):
        kernel_size, stride, _ = self.geometry
        return (kernel_size, kernel_size, self.outputs, self.inputs), self.inputs * kernel_size**2 / stride**2

    def forward(self, x):
        self._check_images(x)
        n, h, w, _ = self.input_shape = x.shape
        oh, ow = conv_transpose_size(h, *self.geometry), conv_transpose_size(w, *self.geometry)
        if oh < 1 or ow < 1:
            raise InputError(f"{self!r} got an image of {h}x{w}, of which its padding leaves nothing")
        self.x = x.reshape(-1, self.inputs)
        matrix = self.weight.value.reshape(-1, self.inputs)
        patches = self.workspace.get("products", (len(self.x), len(matrix)), x.dtype)
        xp.matmul(self.x, matrix.T, out=patches)
        shape = (n, oh, ow, self.outputs)
        return fold(patches, shape, *self.geometry, self.workspace, self.bias.value, self.slope)

    def backward(self, dy):
        dpatches = unfold(dy, *self.geometry, self.workspace)
        xp.matmul(dpatches.T, self.x, out=self.weight.grad.reshape(-1, self.inputs))
        self.bias.grad[...] = sum_rows(dy)
        return (dpatches @ self.weight.value.reshape(-1, self.inputs)).reshape(self.input_shape)
