"""The same numbers, sooner. Each class here takes the place of one of the core, which says what is computed.

    arrays.py      arrays that are kept, fewer passes over memory
    winograd.py    convolutions with 9 products for 16, on a CPU
    planes.py      convolutions of images with few channels, on a CPU
    products.py    products of matrices in pieces that BLAS need not pack
    workers.py     a batch as a sum of shards, a thread on each core
    processes.py   shards in several processes, under mpiexec
    voices.py      several processes that speak as one
    cores.py       how many cores there are, and who keeps to which
    signals.py     Ctrl-C, which must not break in while threads are waited for
    gpu.py         CUDA kernels in the place of array code, and CuPy's peculiarities

`vae_np/__init__.py` puts the table of `replacements` into backend.FASTER, unless VAE_BACKEND=plain.
"""


def replacements():
    """{a class of the core: the subclass that is made in its place}."""
    from vae_np import conv, layers, losses, optim, vae
    from vae_np.fast import arrays, gpu, processes, voices, winograd, workers

    return {
        conv.Conv2d: arrays.FastConv2d if gpu.IN_USE else winograd.WinogradConv2d,
        conv.ConvTranspose2d: arrays.FastConvTranspose2d if gpu.IN_USE else winograd.WinogradConvTranspose2d,
        layers.Dense: arrays.FastDense,
        layers.LeakyReLU: arrays.FastLeakyReLU,
        losses.Bernoulli: arrays.FastBernoulli,
        losses.Gaussian: arrays.FastGaussian,
        losses.CalibratedGaussian: arrays.FastCalibratedGaussian,
        optim.Adam: arrays.FastAdam,
        vae.VAE: processes.SpreadVAE if voices.started() else workers.ParallelVAE,
    }
