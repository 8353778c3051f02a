"""On a GPU: CUDA kernels in the place of array code, and what else CuPy wants to be asked for in its own way.

Each kernel takes the place of a function of the same name in arrays.py, which says what is computed; `on_gpu` makes the
exchange, and the tests compare the two. One launch does what array code takes many for, or moves less memory. Every
kernel is the body of a loop over i, written in CUDA C and run for all i at once, a thread each. What a thread writes,
no other thread writes: everything is a gather, which reads wherever it must, and so needs no atomic additions, whose
order (and rounding) would change from run to run.

Sizes that stay the same are constants of the compiled code, since the remainder of a division by a constant is several
times cheaper than that of a variable, and 32-bit indices are cheaper than 64-bit ones; they reach as far as 2^32
numbers, or 16 GB of float32 in one array.
"""

import functools

import numpy as np

from vae_np.backend import NAME, to_device, xp
from vae_np.conv import conv_size

IN_USE = NAME == "cupy"


def on_gpu(kernel):
    """Decorate array code that on a GPU gives way to `kernel`, of the same arguments and results.

    The array code says what is computed, and is what runs on a CPU. On a GPU it can be had as __wrapped__.
    """

    def exchange(function):
        kernel.__wrapped__ = function
        return kernel if IN_USE else function

    return exchange


class ImagesOnDevice:
    """uint8 images in a GPU's memory, of which a batch is gathered there: images[rows], rows an array of the host."""

    def __init__(self, images):
        self.array = xp.empty(images.shape, images.dtype)
        for start in range(0, len(images), 4096):  # all at once would take as much of the host's memory, and keep it
            self.array[start : start + 4096] = to_device(np.asarray(images[start : start + 4096]))

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return self.array[to_device(rows)]


def kept_on_device(images):
    """uint8 images moved to a GPU's memory, if they take at most half of what is free there; otherwise as they are.

    All of CelebA at 64x64 is 2.5 GB. On a CPU images stay on disk, which the system's cache makes fast enough.
    """
    return ImagesOnDevice(images) if IN_USE and 2 * images.nbytes <= free_memory() else images


def free_memory():
    """Bytes that arrays may still take on a GPU; on a CPU 0, since no array has to be moved there."""
    return xp.cuda.runtime.memGetInfo()[0] if IN_USE else 0


def synchronize():
    """Wait until a GPU has done all that it was told; a CPU has."""
    if IN_USE:
        xp.cuda.Device().synchronize()


@functools.cache
def compiled(name, inputs, outputs, body, **constants):
    """A CuPy kernel, compiled once for each set of constants, whole numbers that the body may use by their names."""
    preamble = "".join(f"constexpr int {key} = {value};\n" for key, value in constants.items())
    return xp.ElementwiseKernel(inputs, outputs, body, name, preamble=preamble)


@functools.cache
def ones(count, dtype):
    """Ones (count,): a product with them is a sum."""
    return xp.ones(count, dtype)


# Layers.


def leaky(x, slope):
    """arrays.leaky: x where x > 0, else slope * x."""
    return compiled("leaky", "T x, T slope", "T y", "y = x > 0 ? x : slope * x")(x, slope)


def leaky_gradient(y, dy, slope):
    """arrays.leaky_gradient: dy where y > 0, else slope * dy."""
    return compiled("leaky_gradient", "T y, T dy, T slope", "T dx", "dx = y > 0 ? dy : slope * dy")(y, dy, slope)


# Convolutions. A pixel's place is found from i, its number in memory: the last axis is what remains of the division by
# its length, and so on to the first.
UNFOLD = """
    unsigned rest = i;
    const int c = rest % C;   rest /= C;
    const int kw = rest % K;  rest /= K;
    const int kh = rest % K;  rest /= K;
    const int ow = rest % OW; rest /= OW;
    const int oh = rest % OH; rest /= OH;  // what is left is the number of the image
    const int h = oh * S - P + kh, w = ow * S - P + kw;
    patches = h >= 0 && h < H && w >= 0 && w < W ? x[((rest * H + h) * W + w) * C + c] : T(0);
"""


def unfold(x, kernel_size, stride, padding, workspace):
    """arrays.unfold, one thread for a number of a patch: where does it stand in the image?

    A thread does little but wait for memory, so it should wait for much: where it can, it moves 16 bytes of a pixel.
    """
    _, h, w, c = x.shape
    k, s, p = kernel_size, stride, padding
    oh, ow = conv_size(h, k, s, p), conv_size(w, k, s, p)
    patches = workspace.get("patches", (len(x), oh, ow, k, k, c), x.dtype)
    target = patches
    if x.flags.c_contiguous and c * x.itemsize % 16 == x.data.ptr % 16 == 0:
        x, target = x.view("complex128"), patches.view("complex128")  # nobody computes with these numbers
    kernel = compiled("unfold", "raw T x", "T patches", UNFOLD, C=x.shape[-1], K=k, S=s, P=p, H=h, W=w, OH=oh, OW=ow)
    kernel(x, target)
    return patches.reshape(-1, k * k * c)


FOLD = """
    unsigned rest = i;
    const int c = rest % C; rest /= C;
    const int w = rest % W; rest /= W;
    const int h = rest % H; rest /= H;
    T sum = 0;
    // Row kh of patch oh lies on row oh * S - P + kh of the image. So kh leaves the same remainder as h + P.
    for (int kh = (h + P) % S; kh < K && kh <= h + P; kh += S) {
        const int oh = (h + P - kh) / S;
        for (int kw = (w + P) % S; kw < K && kw <= w + P; kw += S) {
            const int ow = (w + P - kw) / S;
            if (oh < OH && ow < OW) sum += patches[((((rest * OH + oh) * OW + ow) * K + kh) * K + kw) * C + c];
        }
    }
    y = sum;
"""


def fold(patches, shape, kernel_size, stride, padding, workspace, y=None):
    """arrays.fold, one thread for a number of an image: which patches cover it?"""
    _, h, w, c = shape
    k, s, p = kernel_size, stride, padding
    oh, ow = conv_size(h, k, s, p), conv_size(w, k, s, p)
    kernel = compiled("fold", "raw T patches", "T y", FOLD, C=c, K=k, S=s, P=p, H=h, W=w, OH=oh, OW=ow)
    return kernel(patches, xp.empty(shape, patches.dtype) if y is None else y)


# Losses and the update.


CROSS_ENTROPY = """
    const T softplus = max(logit, T(0)) + log1p(exp(-abs(logit)));
    term = softplus - x * logit;
    gradient = (exp(logit - softplus) - x) * scale;
"""


def cross_entropy(logits, x, scale):
    """arrays.cross_entropy, without a pass over memory for each operation."""
    kernel = compiled("cross_entropy", "T logit, T x, T scale", "T term, T gradient", CROSS_ENTROPY)
    terms, dlogits = kernel(logits, x, scale)
    return terms.sum() * scale, dlogits


SQUARED_ERROR = """
    const T mean = T(0.5) * (T(1) + tanh(T(0.5) * logit));
    const T error = mean - x;
    square = error * error;
    gradient = error * mean * (T(1) - mean);
"""


def squared_error(logits, x):
    """arrays.squared_error, in one pass."""
    squares, dlogits = compiled("squared_error", "T logit, T x", "T square, T gradient", SQUARED_ERROR)(logits, x)
    return squares.sum(), dlogits


ADAM_STEP = """
    m += m_rate * (g - m);
    v += v_rate * (g * g - v);
    value -= m_scale * m / (sqrt(v) * v_scale + epsilon);
"""


def adam_step(values, grads, m, v, beta1, beta2, epsilon, m_scale, v_scale):
    """arrays.adam_step: each number is read once and written once. m, v and values hold the old ones as it begins.

    1 - beta is worked out here, in float64: in float32, 1 - 0.999 would be off by 1e-5.
    """
    compiled("adam_step", "T g, T m_rate, T v_rate, T epsilon, T m_scale, T v_scale", "T m, T v, T value", ADAM_STEP)(
        grads, 1 - beta1, 1 - beta2, epsilon, m_scale, v_scale, m, v, values)
