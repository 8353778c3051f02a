"""The switch VAE_BACKEND, as a new process meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAND_IN = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "stand_in")))  # a lesson finds the package nowhere else
OURS = {"VAE_BACKEND", "STAND_IN_FAULT", "PYTHONPATH"}  # what the environment of the tests says of these is no matter


def run(backend, *command, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | variables
    environment |= {} if backend is None else {"VAE_BACKEND": backend}
    return subprocess.run([sys.executable, *(command or ("-c", "import vae_np"))], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=120, check=False)


# What a process prints: its backend, the library, whether classes give way to others, and what they then are.
SAYS = ("from vae_np import VAE, backend as b; model = VAE(16, (4, 6), 5); layer = model.encoder.paths[0].layers[0]; "
        "print(b.NAME, b.xp.__name__, bool(b.FASTER), type(model).__module__, type(layer).__module__)")
NUMPY = ["numpy", "numpy", "True", "vae_np.fast.workers", "vae_np.fast.winograd"]


@pytest.mark.parametrize(("backend", "words"), [
    (None, NUMPY), ("", NUMPY), ("numpy ", NUMPY), ("plain", ["plain", "numpy", "False", "vae_np.vae", "vae_np.conv"]),
    ("cupy", ["cupy", "cupy", "True", "vae_np.fast.workers", "vae_np.fast.arrays"])])
def test_numpy_is_the_default_and_plain_is_the_core_alone(backend, words):
    result = run(backend, "-c", SAYS, PYTHONPATH=STAND_IN)
    assert (result.stdout.split(), result.stderr) == (words, "")


def complaint(backend, first="", **variables):
    """What a program is told that can do without vae_np and says so with `except Exception`."""
    code = f"{first}\ntry:\n import vae_np\nexcept Exception as error: print(error)"
    result = run(backend, "-c", code, **variables)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("backend", ["torch", "CuPy"])
def test_an_unknown_backend_is_one_clear_line(backend):
    assert complaint(backend) == (f"VAE_BACKEND={backend}, but there is no such backend; set it to numpy, cupy or "
                                  "plain, or unset VAE_BACKEND\n")


def test_cupy_that_is_not_installed_is_one_clear_line():
    assert complaint("cupy", "import sys; sys.modules['cupy'] = None") == (
        "VAE_BACKEND=cupy, but CuPy is not installed; see which CUDA version nvidia-smi shows, 12 or 13, and pip "
        'install "cupy-cuda12x[ctk]" or "cupy-cuda13x[ctk]", or unset VAE_BACKEND\n')


NO_DRIVER = "there is no NVIDIA driver; install one, until nvidia-smi shows your GPU"
FAULTS = {
    "no_driver": NO_DRIVER,
    "old_driver": "the driver is for CUDA 11.4 and CuPy for CUDA 12; update the driver, or install the CuPy of its "
                  "version, if that is 12 or newer",
    "no_gpu": "CUDA finds no GPU; see that nvidia-smi shows one and CUDA_VISIBLE_DEVICES names it",
    "no_nvrtc": 'CuPy cannot compile a kernel (Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: '
                "libnvrtc.so.13 or libnvrtc.so.12, No such file: libnvrtc.so.13 or libnvrtc.so.12); the toolkit's "
                'NVRTC seems to be missing: pip install "cupy-cuda12x[ctk]", or 13 for 12',
    "no_cublas": 'CuPy cannot multiply matrices (Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such '
                 "file: libcublasLt.so.13 or libcublasLt.so.12, No such file: libcublasLt.so.13 or "
                 "libcublasLt.so.12); the toolkit's cuBLAS seems to be missing: pip install "
                 '"cupy-cuda12x[ctk]", or 13 for 12',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_cupy_that_cannot_work_is_one_clear_line(fault):
    found = complaint("cupy", PYTHONPATH=STAND_IN, STAND_IN_FAULT=fault)
    assert found == f"VAE_BACKEND=cupy, but {FAULTS[fault]}, or unset VAE_BACKEND\n"


# In place of CuPy's own errors, others that its libraries raise: without a message, or with one of many lines.
@pytest.mark.parametrize(("error", "reason"), [
    ("OSError()", "OSError"), ("OSError('  ')", "OSError"), ("KeyError(3)", "3"),
    ("RuntimeError('\\nlibnvrtc is not there\\nor it is elsewhere')", "libnvrtc is not there")])
def test_whatever_keeps_cupy_from_compiling_its_first_line_is_the_reason(error, reason):
    first = f"import cupy\ndef fail(*args):\n raise {error}\ncupy.arange = fail"
    found = complaint("cupy", first, PYTHONPATH=STAND_IN)
    assert found.startswith(f"VAE_BACKEND=cupy, but CuPy cannot compile a kernel ({reason}); the ")
    assert found.count("\n") == 1


@pytest.mark.parametrize("command", [
    ["-m", "vae_np.benchmark"], ["-m", "vae_np.gradcheck"], ["-m", "data_tools.check", "folder"],
    ["lessons/03_train.py", "--help"]], ids=str)
def test_every_program_ends_with_that_line(command):
    result = run("cupy", *command, PYTHONPATH=STAND_IN, STAND_IN_FAULT="no_driver")
    assert (result.returncode, result.stdout, result.stderr) == (
        1, "", f"error: VAE_BACKEND=cupy, but {NO_DRIVER}, or unset VAE_BACKEND\n")


@pytest.mark.parametrize(("module", "large"), [
    ("vae_np", {"matplotlib", "scipy", "PIL", "hypothesis"}), ("vae_np.study.pictures", {"matplotlib", "scipy"})])
def test_importing_is_quick_since_no_large_module_comes_with_it(module, large):
    code = f"import sys, {module}; print(sorted({large} & sys.modules.keys()), 'numpy' in sys.modules)"
    assert run(None, "-c", code).stdout.split() == ["[]", "True"]
