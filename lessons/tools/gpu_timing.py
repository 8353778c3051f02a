"""The part of lesson 10 that needs a GPU: what its launches, its memory and its arithmetic take, measured.

The host only tells a GPU what to do and goes on, so a clock must wait until the GPU is done: before it starts, or it
times earlier work as well, and before it stops, or it times the telling. Within a step nothing is waited for.
"""

import time
from unittest import mock

import numpy as np

from tools import figures
from tools.gpu import ADAM_PASSES, Machine, launches, print_table
from vae_np import VAE
from vae_np.backend import to_device, xp
from vae_np.conv import Convolution
from vae_np.fast import arrays
from vae_np.fast.gpu import synchronize
from vae_np.losses import Bernoulli
from vae_np.optim import Adam
from vae_np.run.benchmark import REFERENCE


def fastest(seconds, function, *arguments):
    """The least of several times of a call, from an idle GPU to an idle one. The first call compiles kernels, untimed.

    As many are taken as fit into so many seconds.
    """
    times = []
    function(*arguments)
    while sum(times) < seconds:
        synchronize()
        start = time.perf_counter()
        function(*arguments)
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(out, seconds):
    """Measure each thing for so many seconds. Less than 0.1 means a trial run, of a small model on small arrays."""
    if seconds < 0.1:
        model, images, side, count = VAE(16, (8, 16), 8), 4, 64, 1 << 16
        print("Less than 0.1 seconds each: a trial run on small arrays, whose figures say nothing about a GPU.")
    else:
        model, images, side, count = VAE(**REFERENCE), 512, 4096, 1 << 24
    measure_launches(seconds)
    measure_adam(seconds, count)
    machine = measure_machine(seconds, 8 * count, side)
    print_table(model, images, machine)
    rng = np.random.default_rng(0)
    x = to_device(rng.random((images, model.image_size, model.image_size, 3), dtype=np.float32))
    eps = to_device(rng.standard_normal((images, model.latent_dim), dtype=np.float32))
    measure_layers(out, seconds, model, x, eps, machine)
    measure_step(seconds, model, x, eps, machine)


# %% What a launch costs
# The host puts launches into a queue and goes on. An operation on one number has nothing to compute and nothing to
# move, so what it takes is Python, CuPy and the launch. Whoever looks at a result waits until the queue is empty, and
# then the GPU waits for whatever comes next.
def measure_launches(seconds, count=1000):
    one = xp.ones(1, "float32")

    def launch(wait):
        for _ in range(count):
            xp.multiply(one, one, out=one)
            if wait:
                synchronize()

    queued, waited = (1e6 / count * fastest(seconds, launch, wait) for wait in (False, True))
    print(f"\nOne number times itself: {queued:.1f} microseconds if launches queue up, {waited:.1f} if each is waited "
          "for.\nNo launch takes less, so fewer and fuller ones win; and look at no result before you must.")


# %% Few launches, and little traffic
# The same update three times. In blocks, as a CPU's cache likes it, array code makes hundreds of launches. With whole
# arrays it makes 13, but they read and write 32 arrays altogether. One kernel reads four and writes three.
def measure_adam(seconds, count):
    four = [xp.ones(count, "float32") for _ in range(4)]  # values, gradient, both means: m and v stay 1
    numbers = (*four, 0.9, 0.999, 1e-8, 1e-3, 1.0)
    array_code = getattr(arrays.adam_step, "__wrapped__", arrays.adam_step)  # on a CPU there is no other
    title = f"Adam, {count:,} numbers: {four[0].nbytes / 1e6:.3g} MB an array"
    print(f"\n{title:44s} launches        GB        ms      GB/s")
    for name, function, block, passes in (("array code, in blocks", array_code, arrays.BLOCK, ADAM_PASSES),
                                          ("array code, whole arrays", array_code, count, ADAM_PASSES),
                                          ("one launch", arrays.adam_step, count, (7,))):
        with mock.patch.object(arrays, "BLOCK", block):
            took = fastest(seconds, function, *numbers)
        traffic = sum(passes) * four[0].nbytes
        print(f"{name:44s}{len(passes) * -(-count // block):9,d}{traffic / 1e9:10.3f}{1e3 * took:10.3f}"
              f"{traffic / took / 1e9:10.1f}")
    print("Expect launching to bound the first (divide its time by its launches), and memory the others.")


# %% This machine's figures
# Copying does no arithmetic, and a product of large matrices does hundreds of operations a byte: one shows what memory
# can do, the other what arithmetic can.
def measure_machine(seconds, count, side):
    source, target = xp.ones(count, "float32"), xp.empty(count, "float32")
    matrix = to_device(np.random.default_rng(0).standard_normal((side, side), dtype=np.float32))
    bandwidth = 2 * source.nbytes / fastest(seconds, xp.copyto, target, source)  # read, and written
    peak = 2 * side**3 / fastest(seconds, xp.matmul, matrix, matrix)
    print(f"\nCopying {source.nbytes / 1e6:.3g} MB: {bandwidth / 1e9:,.4g} GB/s, read and written. "
          f"A product of {side}x{side} float32 matrices: {peak / 1e12:.3g} TFLOP/s.\n"
          "The next table takes these for the machine's figures. From memory, no launch can be expected to do better.")
    return Machine("this machine, as measured", peak, bandwidth)


# %% The layers
# Rates of the forward passes. A layer of few channels does few operations for each number that it moves, and is far
# from the speed of a large product.
def measure_layers(out, seconds, model, x, eps, machine):
    print(f"\n{f'forward, {len(x)} images':44s}{'ms':>8s}{'TFLOP/s':>9s}")
    rates = {}
    for network, given in ((model.encoder, x), (model.decoder, eps)):
        for layer in network.paths[0].layers:  # the shortcut has no convolution
            made = layer.forward(given)
            if isinstance(layer, Convolution):
                pixels = min(array.size // array.shape[-1] for array in (given, made))
                took, name = fastest(seconds, layer.forward, given), repr(layer).split(",")[0] + ")"
                rates[name] = 2 * pixels * layer.weight.value.size / took / 1e12
                print(f"{name:44s}{1e3 * took:8.3f}{rates[name]:9.3g}")
            given = made
    figures.bars(out / "gpu.png", rates, "TFLOP/s", (machine.peak / 1e12, "a product of large matrices"))
    print(f"{out}/gpu.png")


# %% The whole step
def measure_step(seconds, model, x, eps, machine):
    adam, bound = Adam(model.values, model.grads), sum(w.seconds(machine) for w in launches(model, len(x)))
    took = fastest(seconds, lambda: (model.loss_and_gradient(x, eps, Bernoulli()), adam.update(1e-3)))
    print(f"\nA whole step on {len(x)} images: {1e3 * took:.2f} ms, {len(x) / took:,.0f} images/s. The table's bounds "
          f"make {1e3 * bound:.2f} ms.\nBetween them lie launching, what the table leaves out, and launches that reach "
          "neither bound.")
