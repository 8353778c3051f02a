"""Write tests/stand_in/cupy/manifest.json anew: what a real CuPy says of each name in it.

    python tests/make_cupy_manifest.py [cupy.moveaxis ...]

The names are those that the file has, and those given, which are added. Run it where CuPy is installed; no GPU is
needed. null stands for a name that CuPy lacks; else it is [kind, parameters], and the stand-in takes no others.
"""

import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path

import cupy
import numpy as np

MANIFEST = Path(__file__).parent / "stand_in" / "cupy" / "manifest.json"


def of_ufunc(ufunc):
    """The parameters of a ufunc."""
    outputs = ["out=None", "*"] if ufunc.nout == 1 else ["*", "out=None"]
    return ", ".join([*(f"x{i}" for i in range(ufunc.nin)), "/", *outputs, "casting=None", "dtype=None"])


def of_function(function):
    """The parameters as Python knows them or, where it knows no names of keywords, as a docstring's first line does.

    Every default is written as None. Such a line is C's as much as Python's: dot(self, ndarray b, out=None) -> ndarray.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
        known = str(inspect.Signature([p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
                                       for p in parameters]))[1:-1]
    except (TypeError, ValueError):
        known = None
    first = re.match(r"[\w.]+\((.*)\)( ->.*)?$", (function.__doc__ or "").strip().split("\n")[0])
    if first is None or not (known is None or "**" in known):
        return known
    parts = [part.strip().partition("=") for part in first[1].split(",") if part.strip()]
    return ", ".join(name.split()[-1] + ("=None" if equals else "") for name, equals, _ in parts)


def describe(path, name):
    """[kind, parameters], where kind is numpy (the very object of NumPy's), module, ufunc, function, type or value."""
    missing = object()
    value = getattr(pkgutil.resolve_name(path), name, missing)
    if value is missing:
        return None
    if path == "cupy" and value is getattr(np, name, missing):
        return ["numpy", None]
    if isinstance(value, cupy.ufunc):
        return ["ufunc", of_ufunc(value)]
    if inspect.ismodule(value) or not callable(value):
        return ["module" if inspect.ismodule(value) else "value", None]
    return ["type" if isinstance(value, type) else "function", of_function(value)]


def main(added):
    old = json.loads(MANIFEST.read_text(encoding="utf-8"))
    del old["version"]
    wanted = {(path, name) for path, names in old.items() for name in names}
    wanted |= {tuple(name.rsplit(".", 1)) for name in added}
    sections = [f'"version": {json.dumps(cupy.__version__)}']
    for path in sorted({path for path, _ in wanted}):
        names = sorted(name for owner, name in wanted if owner == path)
        lines = [f" {json.dumps(name)}: {json.dumps(describe(path, name))}" for name in names]
        sections.append(f"{json.dumps(path)}: {{\n" + ",\n".join(lines) + "\n}")
    MANIFEST.write_text("{\n" + ",\n".join(sections) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
