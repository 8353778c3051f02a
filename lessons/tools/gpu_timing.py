"""The part of lesson 10 that needs a GPU: what its launches, its memory and its arithmetic take, measured.

The host only tells a GPU what to do and goes on, so a clock must wait until the GPU is done: before it starts, or it
times earlier work as well, and before it stops, or it times the telling. Within a step nothing is waited for.
"""

import time
from unittest import mock

import numpy as np

from tools.gpu import ADAM_PASSES, Machine, launches, print_table
from vae_np import VAE, optim
from vae_np.backend import synchronize, to_device, xp
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.fast.winograd import WinogradConv2d, WinogradConvTranspose2d
from vae_np.losses import Bernoulli
from vae_np.study import pictures

PLAIN = {WinogradConv2d: Conv2d, WinogradConvTranspose2d: ConvTranspose2d}


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
        model, images, side, count = VAE(), 512, 4096, 1 << 24
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
# The same update three times. In blocks, as a CPU's cache likes it, array code makes thousands of small launches. With
# whole arrays it makes 13, but they read and write 32 arrays altogether. One kernel reads four and writes three.
def measure_adam(seconds, count):
    arrays = [xp.ones(count, "float32") for _ in range(4)]  # values, gradient, both means: m and v stay 1
    numbers = (*arrays, 0.9, 0.999, 1e-8, 1e-3, 1.0)
    array_code = getattr(optim.adam_step, "__wrapped__", optim.adam_step)  # on a CPU there is no other
    title = f"Adam, {count:,} numbers: {arrays[0].nbytes / 1e6:.3g} MB an array"
    print(f"\n{title:44s} launches        GB        ms      GB/s")
    for name, function, block, passes in (("array code, in blocks", array_code, optim.BLOCK, ADAM_PASSES),
                                          ("array code, whole arrays", array_code, count, ADAM_PASSES),
                                          ("one launch", optim.adam_step, count, (7,))):
        with mock.patch.object(optim, "BLOCK", block):
            took = fastest(seconds, function, *numbers)
        traffic = sum(passes) * arrays[0].nbytes
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


# %% The layers, plain and fast
# Rates count the operations of 16 products in both. So WinogradConv2d may come out above the speed of products, as in
# this lesson on a CPU; where its transforms cost more than they save, it comes out below Conv2d.
def measure_layers(out, seconds, model, x, eps, machine):
    print(f"\n{f'forward, {len(x)} images':44s}{'ms':>8s}{'TFLOP/s':>9s}   fast: ms{'TFLOP/s':>9s}{'gain':>7s}")
    rates, rng = {}, np.random.default_rng(0)
    for network, given in ((model.encoder, x), (model.decoder, eps)):
        for layer in network.layers:
            made = layer.forward(given)
            if type(layer) in PLAIN:
                kernel_size, stride, padding = layer.geometry
                plain = PLAIN[type(layer)](layer.inputs, layer.outputs, kernel_size, rng, stride, padding)
                plain.weight, plain.bias, plain.slope = layer.weight, layer.bias, layer.slope
                assert float(xp.abs(plain.forward(given) - made).max()) < 0.05, f"{layer!r} and {plain!r} differ"
                pixels = min(array.size // array.shape[-1] for array in (given, made))
                work = 2 * pixels * layer.weight.value.size
                names = [repr(one).split(",")[0] + ")" for one in (plain, layer)]
                times = [fastest(seconds, one.forward, given) for one in (plain, layer)]
                rates |= {name: work / took / 1e12 for name, took in zip(names, times, strict=True)}
                print(f"{names[0]:44s}{1e3 * times[0]:8.3f}{rates[names[0]]:9.3g}{1e3 * times[1]:11.3f}"
                      f"{rates[names[1]]:9.3g}{times[0] / times[1]:7.2f}")
            given = made
    pictures.bars(out / "gpu.png", rates, "TFLOP/s, where 16 products count",
                  (machine.peak / 1e12, "a product of large matrices"))
    print(f"Where the gain is below 1, the transforms cost more than they save.\n{out}/gpu.png")


# %% The whole step
def measure_step(seconds, model, x, eps, machine):
    adam, bound = optim.Adam(model.values, model.grads), sum(w.seconds(machine) for w in launches(model, len(x)))
    took = fastest(seconds, lambda: (model.loss_and_gradient(x, eps, Bernoulli()), adam.update(1e-3)))
    print(f"\nA whole step on {len(x)} images: {1e3 * took:.2f} ms, {len(x) / took:,.0f} images/s. The table's bounds "
          f"make {1e3 * bound:.2f} ms.\nBetween them lie launching, what the table leaves out, and launches that reach "
          "neither bound.")
