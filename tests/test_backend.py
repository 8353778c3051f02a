"""The switch between NumPy and CuPy, as a new process meets it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vae_np

PACKAGE = Path(vae_np.__file__).parent


def import_with(backend, code="import vae_np.backend as b; print(b.NAME, b.xp.__name__)"):
    environment = {name: value for name, value in os.environ.items() if name != "VAE_BACKEND"}
    if backend is not None:
        environment["VAE_BACKEND"] = backend
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("backend", [None, "numpy"])
def test_numpy_is_the_default(backend):
    assert import_with(backend).stdout.split() == ["numpy", "numpy"]


def test_an_unknown_backend_is_one_clear_line():
    result = import_with("torch")
    assert result.returncode == 1
    assert result.stderr == "error: VAE_BACKEND=torch is not a backend; set it to numpy or cupy\n"


def test_cupy_without_cupy_or_without_a_gpu_is_one_clear_line():
    blocked = "import sys; sys.modules['cupy'] = None; import vae_np"
    result = import_with("cupy", blocked)
    assert result.returncode == 1
    assert result.stderr.startswith("error: VAE_BACKEND=cupy, but CuPy is not installed; pip install")
    assert result.stderr.count("\n") == 1

    no_gpu = ("import sys, types; c = types.ModuleType('cupy'); c.cuda = types.SimpleNamespace(is_available=lambda: 0);"
              "sys.modules['cupy'] = c; import vae_np")
    result = import_with("cupy", no_gpu)
    assert result.returncode == 1
    assert result.stderr == "error: VAE_BACKEND=cupy, but CuPy finds no GPU; check nvidia-smi, or unset VAE_BACKEND\n"


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node


def test_only_the_backend_imports_cupy_and_only_images_imports_matplotlib():
    users = {"cupy": set(), "matplotlib": set()}
    for path in PACKAGE.glob("*.py"):
        for name, _ in imported_modules(path):
            if name.split(".")[0] in users:
                users[name.split(".")[0]].add(path.name)
    assert users == {"cupy": {"backend.py"}, "matplotlib": {"images.py"}}
    loaded = import_with(None, "import sys, vae_np.train, vae_np.images; print('matplotlib' in sys.modules)")
    assert loaded.stdout.strip() == "False"


def test_importing_the_package_is_quick_since_no_large_module_comes_with_it():
    large = "{'matplotlib', 'scipy', 'PIL', 'hypothesis'}"
    code = f"import sys, vae_np; print(sorted({large} & sys.modules.keys()), 'numpy' in sys.modules)"
    assert import_with(None, code).stdout.split() == ["[]", "True"]


def test_the_package_knows_no_lesson_and_no_tool():
    for path in PACKAGE.glob("*.py"):
        assert not {name for name, _ in imported_modules(path) if name.split(".")[0] in {"lessons", "data_tools"}}, path
