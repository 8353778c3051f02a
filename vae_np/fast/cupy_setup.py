"""Load CuPy and see that it works, or say in one line what is missing. Only this file imports CuPy."""

import os

from vae_np.errors import BackendError
from vae_np.fast.voices import launched, started


def failure(problem, remedy):
    """The one line for those who cannot have their GPU."""
    return BackendError(f"VAE_BACKEND=cupy, but {problem}; {remedy}, or unset VAE_BACKEND")


def take_own_gpu():
    """Of the processes that mpiexec has started on a machine, let each see one GPU alone: that of its number there."""
    if started():
        number = launched("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", str(number)).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]


def load_cupy():
    """The module cupy, after a kernel and a product have run. Raises BackendError."""
    if os.environ.get("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM") == "1":
        # The threads of fast.workers and the main one rely on each other's work being done in order.
        raise failure("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1 lets threads overtake each other", "unset it")
    take_own_gpu()
    install = ('see which CUDA version nvidia-smi shows, 12 or 13, and pip install "cupy-cuda12x[ctk]" or '
               '"cupy-cuda13x[ctk]"')
    try:
        import cupy
    except ModuleNotFoundError:
        raise failure("CuPy is not installed", install) from None
    except ImportError as error:
        raise failure(f"CuPy is installed and fails to start ({first_line(error)})", install) from None
    find_gpu(cupy.cuda.runtime)
    # Without a library of the toolkit all goes well up to the first kernel, or the first product.
    for what, library, attempt in (
        ("compile a kernel", "NVRTC", lambda: cupy.arange(2) + 1),
        ("multiply matrices", "cuBLAS", lambda: cupy.ones((2, 2), "float32") @ cupy.ones((2, 2), "float32")),
    ):
        try:
            attempt()
        except (MemoryError, cupy.cuda.runtime.CUDARuntimeError) as error:
            raise failure(f"the GPU cannot {what} ({first_line(error)})", "see with nvidia-smi whether another program "
                          "fills it") from None
        except Exception as error:  # CuPy has many of its own, and loaders of libraries have others
            raise failure(f"CuPy cannot {what} ({first_line(error)})", f"the toolkit's {library} seems to be missing: "
                          'pip install "cupy-cuda12x[ctk]", or 13 for 12') from None
    return cupy


def first_line(error):
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find_gpu(runtime):
    """Raise BackendError unless the driver is new enough and shows a GPU."""
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        count = 0
    # CUDA calls a driver that is missing and one that is too old by the same name.
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not driver:
        raise failure("there is no NVIDIA driver", "install one, until nvidia-smi shows your GPU")
    if not count and driver // 1000 < needed // 1000:
        raise failure(f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10} and CuPy for CUDA "
                      f"{needed // 1000}", "update the driver, or install the CuPy of its version, if that is 12 or "
                      "newer")
    if not count:
        raise failure("CUDA finds no GPU", "see that nvidia-smi shows one and CUDA_VISIBLE_DEVICES names it")
