"""The order of the parts, core <- fast, disk <- study <- run <- lessons, data_tools: none imports what comes later."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vae_np"
CORE = {"errors", "backend", "layers", "conv", "losses", "network", "vae", "gradcheck", "optim", "train"}
ALLOWED = {"vae_np": {"core"}, "fast": {"core", "fast"}, "disk": {"core", "disk"},
           "study": {"core", "fast", "disk", "study"}, "run": {"core", "fast", "disk", "study", "run"}}


def imported(node):
    """Every module or name that is imported below a node, such as vae_np.backend.xp."""
    for child in ast.walk(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            module = f"{child.module}." if isinstance(child, ast.ImportFrom) else ""
            yield from (module + alias.name for alias in child.names)


def test_no_part_imports_what_comes_later():
    rare = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem == "gradcheck":  # as a program, it prints the table of run/
            tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node))]
        for node in tree.body:
            for name in imported(node):
                first, second, *_ = [*name.split("."), ""]
                assert first not in ("lessons", "tools", "data_tools", "None"), path
                if first in ("cupy", "matplotlib", "mpi4py"):
                    rare.add((first, path.parent.name, path.stem, isinstance(node, ast.FunctionDef)))
                elif first == "vae_np" and (path.parent != PACKAGE or path.stem in CORE):
                    part = second if second in ALLOWED else "core"
                    assert part in ALLOWED[path.parent.name] or (
                        path.stem == "backend" and name.startswith("vae_np.fast.cupy_setup.")), f"{path}: {name}"
    assert rare == {("cupy", "fast", "cupy_setup", True), ("matplotlib", "study", "pictures", True),
                    ("mpi4py", "fast", "processes", True)}
    assert {path.stem for path in PACKAGE.glob("*.py")} == CORE | {"__init__", "benchmark"}
