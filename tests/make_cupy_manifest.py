"""Write tests/stand_in/cupy/manifest.json: the names of a real CuPy and the parameters of its functions.

    python tests/make_cupy_manifest.py

Run it where CuPy is installed; no GPU is needed. The stand-in accepts nothing that is not in this list.
"""

import importlib
import inspect
import json
import re
from pathlib import Path

import cupy
import numpy as np

NAMESPACES = ("cupy", "cupy.ndarray", "cupy.ElementwiseKernel", "cupy.linalg", "cupy.lib.stride_tricks", "cupy.random",
              "cupy.random.Generator", "cupy.cuda", "cupy.cuda.runtime", "cupy.cuda.Device", "cupy.cuda.Stream",
              "cupy.cuda.MemoryPool")
# Names that are loaded only when they are asked for, so that dir() does not show them.
LAZY = {"cupy.random": ["Generator"]}
# What neither a signature nor a docstring's first line says: those end in **kwargs, or are missing.
KNOWN = {
    "cupy.ElementwiseKernel": "in_params, out_params, operation, name=None, reduce_dims=None, preamble=None, "
                              "no_return=None, return_tuple=None, *, options=None, loop_prep=None, after_loop=None",
    "cupy.ElementwiseKernel.__call__": "self, *args, size=None, stream=None, block_size=None",
    "cupy.ndarray": "shape, dtype=None, memptr=None, strides=None, order=None",
}


def resolve(path):
    """The module or class of a dotted path."""
    module, *names = path.split(".")
    value = importlib.import_module(module)
    for name in names:
        value = getattr(value, name)
    return value


def of_ufunc(ufunc):
    """The parameters of a ufunc, whose outputs may also be given by position."""
    inputs = [f"x{i}" for i in range(ufunc.nin)]
    outputs = ["out=None"] if ufunc.nout == 1 else [*(f"out{i}=None" for i in range(ufunc.nout)), "*", "out=None"]
    star = ["*"] if ufunc.nout == 1 else []
    return ", ".join([*inputs, "/", *outputs, *star, "casting=None", "dtype=None"])


def of_signature(function):
    """The parameters as Python knows them, every default written as None; None where it does not know them all."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    parameters = [p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
                  for p in signature.parameters.values()]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return str(inspect.Signature(parameters))[1:-1]


def of_docstring(function):
    """The parameters as the docstring's first line gives them: f(self, int axis=-1, *, out=None) -> array."""
    first = (function.__doc__ or "").strip().split("\n")[0]
    match = re.match(r"[\w.]+\((.*)\)( ->.*)?$", first.replace("\\*", "*"))
    if not match:
        return None
    parameters = []
    for part in re.sub(r"\([^()]*\)", "", match[1]).split(","):
        name, equals, _ = part.strip().partition("=")
        parameters += [name.split()[-1] + ("=None" if equals else "")] if name else []
    text = ", ".join(parameters)
    try:
        compile(f"lambda {text}: None", first, "eval")
    except SyntaxError:
        return None
    return text


def describe(path, name, value):
    """[kind, parameters], where kind is numpy (the very object of NumPy), module, ufunc, function, type or value."""
    path = f"{path}.{name}"
    if inspect.ismodule(value):
        return ["module", None]
    if path.count(".") == 1 and value is getattr(np, name, path):
        return ["numpy", None]
    if isinstance(value, cupy.ufunc):
        return ["ufunc", of_ufunc(value)]
    kind = "type" if isinstance(value, type) else "function" if callable(value) else "value"
    if kind == "value":
        return [kind, None]
    found = (parameters for parameters in (KNOWN.get(path), of_signature(value), of_docstring(value))
             if parameters is not None)
    return [kind, next(found, None)]


def names_of(path):
    """The public names of a module or class, and of a class the special methods too."""
    value = resolve(path)
    special = isinstance(value, type)
    names = {name for name in dir(value) if not name.startswith("_") or (special and name.startswith("__"))}
    return sorted(names | set(LAZY.get(path, ())))


def main():
    manifest = {"version": cupy.__version__}
    for path in NAMESPACES:
        owner = resolve(path)
        manifest[path] = {name: describe(path, name, getattr(owner, name)) for name in names_of(path)}
    lines = []
    for path, names in manifest.items():
        entries = json.dumps(names) if isinstance(names, str) else (
            "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in names.items()) + "\n}")
        lines.append(f"{json.dumps(path)}: {entries}")
    path = Path(__file__).parent / "stand_in" / "cupy" / "manifest.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
