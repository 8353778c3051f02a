"""The switch between NumPy and CuPy, as a new process meets it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vae_np

PACKAGE = Path(vae_np.__file__).parent
ROOT = Path(__file__).parent.parent
STAND_IN = ROOT / "tests" / "stand_in"
OURS = {"VAE_BACKEND", "STAND_IN_FAULT", "PYTHONPATH"}  # what the environment of the tests says of these is no matter


def run(command, backend, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | variables
    if backend is not None:
        environment["VAE_BACKEND"] = backend
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=120, check=False)


def import_with(backend, code="import vae_np.backend as b; print(b.NAME, b.xp.__name__)", **variables):
    return run(["-c", code], backend, **variables)


@pytest.mark.parametrize("backend", [None, "", "numpy"])
def test_numpy_is_the_default(backend):
    result = import_with(backend)
    assert (result.stdout.split(), result.stderr) == (["numpy", "numpy"], "")


def test_cupy_is_taken_where_all_is_well():
    result = import_with("cupy", PYTHONPATH=str(STAND_IN))
    assert (result.stdout.split(), result.stderr) == (["cupy", "cupy"], "")


def assert_one_line(result, line):
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line + "\n")


@pytest.mark.parametrize("backend", ["torch", "CuPy", "numpy "])
def test_an_unknown_backend_is_one_clear_line(backend):
    assert_one_line(import_with(backend), f"error: VAE_BACKEND={backend}, but there is no such backend; set it to "
                                          "numpy or cupy, or unset VAE_BACKEND")


def test_cupy_that_is_not_installed_is_one_clear_line():
    assert_one_line(import_with("cupy", "import sys; sys.modules['cupy'] = None; import vae_np"),
                    "error: VAE_BACKEND=cupy, but CuPy is not installed; see which CUDA version nvidia-smi shows, 12 "
                    'or 13, and pip install "cupy-cuda12x[ctk]" or "cupy-cuda13x[ctk]", or unset VAE_BACKEND')


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
    result = import_with("cupy", "import vae_np", PYTHONPATH=str(STAND_IN), STAND_IN_FAULT=fault)
    assert_one_line(result, f"error: VAE_BACKEND=cupy, but {FAULTS[fault]}, or unset VAE_BACKEND")


# In place of CuPy's own errors, others that its libraries raise: without a message, or with one of many lines.
@pytest.mark.parametrize(("error", "reason"), [
    ("OSError()", "OSError"), ("OSError('  ')", "OSError"), ("KeyError(3)", "3"),
    ("RuntimeError('\\nlibnvrtc is not there\\nor it is elsewhere')", "libnvrtc is not there")])
def test_whatever_keeps_cupy_from_compiling_its_first_line_is_the_reason(error, reason):
    code = f"import cupy\ndef fail(*args):\n raise {error}\ncupy.arange = fail\nimport vae_np"
    result = import_with("cupy", code, PYTHONPATH=str(STAND_IN))
    assert result.stderr.startswith(f"error: VAE_BACKEND=cupy, but CuPy cannot compile a kernel ({reason}); the ")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize("command", [
    ["-m", "vae_np.benchmark"], ["-m", "vae_np.gradcheck"], ["lessons/03_train.py", "--help"]], ids=lambda c: c[-1])
def test_every_program_ends_with_that_line(command):
    result = run(command, "cupy", PYTHONPATH=str(STAND_IN), STAND_IN_FAULT="no_driver")
    assert_one_line(result, f"error: VAE_BACKEND=cupy, but {NO_DRIVER}, or unset VAE_BACKEND")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node


def test_only_the_backend_imports_cupy_and_only_images_imports_matplotlib():
    users = {"cupy": set(), "matplotlib": set()}
    for path in PACKAGE.rglob("*.py"):
        for name, _ in imported_modules(path):
            if name.split(".")[0] in users:
                users[name.split(".")[0]].add(path.name)
    assert users == {"cupy": {"backend.py"}, "matplotlib": {"pictures.py"}}
    loaded = import_with(None, "import sys, vae_np.study.pictures; print('matplotlib' in sys.modules)")
    assert loaded.stdout.strip() == "False"


def test_importing_the_package_is_quick_since_no_large_module_comes_with_it():
    large = "{'matplotlib', 'scipy', 'PIL', 'hypothesis'}"
    code = f"import sys, vae_np; print(sorted({large} & sys.modules.keys()), 'numpy' in sys.modules)"
    assert import_with(None, code).stdout.split() == ["[]", "True"]


def test_the_package_knows_no_lesson_and_no_tool():
    for path in PACKAGE.rglob("*.py"):
        assert not {name for name, _ in imported_modules(path) if name.split(".")[0] in {"lessons", "data_tools"}}, path
