"""The part of lesson 10 that is about a GPU: what bounds a training step there. gpu_timing.py measures it on one.

A GPU is told what to do in launches: one kernel, or one matrix product, over whole arrays. What a launch reads comes
from the GPU's memory and what it writes goes there. So there are three things that can bound it: arithmetic, memory
traffic, and the launching. The first two follow from the shapes of a model and the figures of a machine.
"""

import functools
from typing import NamedTuple

from vae_np import VAE
from vae_np.backend import xp
from vae_np.conv import Convolution, ConvTranspose2d
from vae_np.fast.winograd import FEWEST_CHANNELS
from vae_np.layers import Dense, LeakyReLU
from vae_np.run.benchmark import REFERENCE

WAYS = {"unfold": "16 products, as the model is", "direct": "   the same, patches never written",
        "nine": "9 products, as on a CPU"}  # fmt: skip
# Adam in array code, the arrays of each operation: those it reads and the one it writes.
ADAM_PASSES = (3, 2, 3, 2, 3, 2, 3, 2, 2, 2, 3, 2, 3)


class Machine(NamedTuple):
    name: str
    peak: float  # operations a second; a multiplication is one, an addition another
    bandwidth: float  # bytes a second, read or written


# From NVIDIA's data sheet, column H100 SXM: 67 teraFLOPS in float32, 3.35 TB/s of memory bandwidth.
H100 = Machine("an H100 SXM5 as its data sheet has it", 67e12, 3.35e12)


# %% Counting
class Launch(NamedTuple):
    """What a launch cannot do without: each number that it needs is read once, each result is written once."""

    group: str
    operations: int
    numbers: int  # read and written, of 4 bytes each

    def seconds(self, machine):
        """Arithmetic and traffic of one launch go on at the same time, so the slower one bounds it."""
        return max(self.operations / machine.peak, 4 * self.numbers / machine.bandwidth)


def launches(model, images, way="unfold"):
    """The launches of a training step on so many images, as vae_np makes them on a GPU.

    way: "unfold" is the model as it is. "direct" puts patches together inside the chip (Chetlur et al. 2014, "cuDNN:
    efficient primitives for deep learning"): the best that 16 products can do. "nine" takes 9 for 16, where
    fast/winograd.py does on a CPU.

    A root, an exponential, a logarithm count as one operation. Nine products of one call are one launch. Left out is
    what is small: noise, the KL divergence, clipping, the conversion of images to floats.
    """
    found = []
    for layer, x, y in one_image(model):
        products = 2 if layer is model.encoder.paths[0].layers[0] else 3  # nobody wants the gradient of the images
        found += [Launch(*work) for work in work_of(layer, images, x, y, way, products)]
    n, p = images * y.size, model.values.size
    return [*found, Launch("loss", 12 * n, 4 * n), Launch("loss", n, n),  # logits, x -> terms, gradient; their sum
            Launch("Adam", 13 * p, 7 * p)]  # g, m, v, values -> m, v, values


@functools.cache
def one_image(model):
    """What goes into each layer and what comes out when an image passes through the model: [(layer, x, y), ...]."""
    found, size = [], model.image_size
    for network, shape in ((model.encoder, (size, size, 3)), (model.decoder, (model.latent_dim,))):
        for path in network.paths:
            x = xp.zeros((1, *shape), model.dtype)
            for layer in path.layers:
                y = layer.forward(x)
                found.append((layer, x[0], y[0]))
                x = y
    return found


def work_of(layer, images, x, y, way, products):
    """Yield (group, operations, numbers) for each launch of a layer that makes y of x, forward and backward.

    A layer with weights takes three products: forward, for the gradient of its weights, and for that of its input.
    They have the same three matrices; each time another one of them is the result.
    """
    n_x, n_y = images * x.size, images * y.size
    larger = y if isinstance(layer, ConvTranspose2d) else x
    if way == "nine" and larger.shape[-1] < FEWEST_CHANNELS:
        way = "unfold"
    if isinstance(layer, LeakyReLU):
        yield from [("bias, activation", n_y, 2 * n_y), ("bias, activation", n_y, 3 * n_y)]  # x -> y; y, dy -> dx
    elif isinstance(layer, Dense):
        n_w = layer.weight.value.size
        yield from [("products", 2 * images * n_w, n_x + n_w + n_y)] * products
    elif isinstance(layer, Convolution):
        yield from convolve(layer, images, x, y, way, products)
    if hasattr(layer, "bias"):
        yield from [("bias, activation", n_y, 2 * n_y), ("bias, activation", n_y, n_y)]  # added; dy added up


def convolve(layer, images, x, y, way, products):
    """What work_of yields of a convolution, without its bias. The transposed one is the same, read backwards."""
    large, small = (y, x) if isinstance(layer, ConvTranspose2d) else (x, y)  # a patch of large for a pixel of small
    columns, weight, rows = layer.weight.value[..., 0].size, layer.weight.value.size, images * small[..., 0].size
    patches, operations, large, small = rows * columns, 2 * rows * weight, images * large.size, images * small.size
    if way == "nine":
        tiles, kernels, nine = 9 * patches // 16, 9 * weight // 4, 9 * small // 4
        yield from [("products", 9 * operations // 16, tiles + kernels + nine)] * products
        yield "transforms", 12 * tiles // 9, large + tiles  # input_transform
        # Of nine matrices at a time CuPy multiplies copies where they are transposed: tiles for the gradient of the
        # weights, kernels for that of the input.
        yield from [("transposes", 0, 2 * tiles), ("transposes", 0, 2 * kernels)]
        if products == 3:
            yield "transforms", tiles, tiles + large  # input_transform_adjoint
        for four, spread in ((small, nine), (weight, kernels)):
            yield "transforms", 5 * four // 4, four + spread  # kernel_transform
            yield "transforms", 10 * four // 4, spread + four  # output_transform
    elif way == "direct":
        yield from [("products", operations, large + weight + small)] * products
    else:
        yield from [("products", operations, patches + weight + small)] * products
        yield from [("unfold, fold", 0, large + patches), ("unfold, fold", patches, patches + large)][: products - 1]


def print_table(model, images, machine):
    """What each group of launches needs, and which of the two takes longer; then what the ways need altogether."""
    made = launches(model, images)
    print(f"\nOne training step on {images} images in float32, by the shapes of its arrays, for {machine.name}:\n"
          f"{machine.peak / 1e12:.3g} TFLOP/s and {machine.bandwidth / 1e12:.3g} TB/s, which makes "
          f"{machine.peak / machine.bandwidth:.3g} operations in the time of a byte: its ridge point.\n\n"
          f"{'':17s} launches     GFLOP        GB  operations/byte  ms of arithmetic  ms of memory  bound by")
    for group in dict.fromkeys(launch.group for launch in made):
        some = [launch for launch in made if launch.group == group]
        operations, traffic = sum(launch.operations for launch in some), 4 * sum(launch.numbers for launch in some)
        arithmetic, memory = operations / machine.peak, traffic / machine.bandwidth
        print(f"{group:17s}{len(some):9d}{operations / 1e9:10.2f}{traffic / 1e9:10.3f}{operations / traffic:17.2f}"
              f"{1e3 * arithmetic:18.3f}{1e3 * memory:14.3f}  {'arithmetic' if arithmetic > memory else 'memory'}")
    print(f"\n{'the slower bound of each launch, added up':49s} launches        GB     ms")
    for way, meaning in WAYS.items():
        made = launches(model, images, way)
        print(f"{meaning:49s}{len(made):9d}{sum(4e-9 * launch.numbers for launch in made):10.2f}"
              f"{1e3 * sum(launch.seconds(machine) for launch in made):7.2f}")


def explain():
    """For readers without a GPU: what the shapes say, and what they do not."""
    print("\nAnd on a GPU? The tables are arithmetic, not measurements.", end="")
    print_table(model := VAE(**REFERENCE), 512, H100)
    few = [launch.seconds(H100) for launch in launches(model, 32)]
    mean = 1e6 * sum(few) / len(few)
    print(f"""
What to see: products do more operations a byte than the ridge point (but for those of 3 channels, at both ends), so
arithmetic bounds them. Everything else does less than one, so memory bounds it, and only moving less helps: one launch
does all of Adam, which array code reads and writes 32 arrays for. Patches that never get to memory would need least of
all, but that takes a product that puts them together itself, and not a library's.

By these figures 9 products should beat 16 of patches in memory, as on a CPU. Measured, they lost: on an H100, a step
with four more kernels for the transforms took 1.5 times as long on 128 images and 1.2 times on 512, so a GPU takes 16.
The table knows nothing of what it takes to launch, nor that nine small matrices at a time fill the chip less well than
one large one: for the gradient of kernels of 32 -> 64 channels, nine took 1.1 ms and the one 0.2. None of it is a
prediction: no launch reaches a data sheet's figures, and what the L2 cache holds (50 MB on this GPU) need not come from
memory. Nor does memory give its best to threads that wait for 4 bytes each: to unfold 16 bytes each (fast/gpu.py) took
a third of the time in the layers of 32 channels and more. Launching has a cost of its own, which does not shrink with
the batch: with 32 images, {len(few)} launches have {mean:.1f} microseconds of work each, and it takes Python 7 to 25 to
make one. A GPU wants few launches, and full ones.

With a GPU, VAE_BACKEND=cupy python lessons/10_speed.py measures all this on yours.""")
