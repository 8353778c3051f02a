"""cupy.ElementwiseKernel, run for real: its body becomes a C++ function, compiled by the machine's compiler.

CuPy runs all iterations at once. Here they run one after the other in a scrambled order, so that a result which depends
on the order is wrong; an index outside an array is an error, and so are two iterations that write to one place of a raw
array, and numbers of one that are not aligned to their size. A kernel is compiled once for all processes, into a folder
of the system's temporary one.
"""

import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from . import _memory
from ._array import SCALARS, fresh, ndarray

HEADER = (Path(__file__).parent / "kernel.hpp").read_text(encoding="utf-8")
C_TYPES = {"bool": "bool", "uint8": "unsigned char", "int32": "int", "int64": "long long", "float32": "float",
           "float64": "double", "complex128": "stand_in::Complex"}
# The body stands in a loop, as in CuPy, so that it may say `continue`. Names with an underscore are reserved there too.
SOURCE = """{header}
{typedefs}
{preamble}
extern "C" void run(ptrdiff_t _size, void** _data, const int* _ndims, const ptrdiff_t* const* _shapes,
                    const ptrdiff_t* const* _strides, stand_in::Fault* _fault) {{
    try {{
        {before}
        for (stand_in::Order _order(_size); _order.next(); [&] {{ {finish} }}()) {{
            ptrdiff_t i = _order.now;
            {each}
            {operation};
        }}
    }} catch (const stand_in::Fault& found) {{
        *_fault = found;
    }}
}}
"""


def compiler():
    """The machine's C++ compiler, or None."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@functools.cache
def compiled(source):
    """The function `run` of a source, compiled unless some process has done so before."""
    command = [compiler(), "-std=c++14", "-O1", "-w", "-shared", "-fPIC", "-x", "c++", "-"]
    name = hashlib.sha256("\0".join([*command, source]).encode()).hexdigest()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    library = Path(tempfile.gettempdir()) / f"cupy_stand_in_{user}" / f"{name}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        handle, private = tempfile.mkstemp(dir=library.parent)
        os.close(handle)
        result = subprocess.run([*command, "-o", private], input=source, capture_output=True, text=True, check=False)
        if result.returncode:
            os.unlink(private)
            raise RuntimeError(f"a kernel does not compile:\n{source.removeprefix(HEADER)}\n{result.stderr}")
        os.replace(private, library)  # another process may be doing the same
    return ctypes.CDLL(str(library)).run


class Parameter:
    """One parameter of a kernel: "T x", "raw T x", "float32 rate"."""

    def __init__(self, text, is_input):
        *options, self.type, self.name = text.split()
        if options not in ([], ["raw"]) or not re.fullmatch(r"[A-Za-z]\w*", self.name) or self.name == "i":
            raise ValueError(f"not a parameter of a kernel: {text!r}")
        self.raw, self.is_input = bool(options), is_input
        self.dtype = None if len(self.type) == 1 else np.dtype(self.type)


def parse(text, is_input):
    return [Parameter(part, is_input) for part in text.split(",")] if text else []


class ElementwiseKernel:
    """A body in CUDA C that is run for every number i of the output."""

    def __init__(self, in_params, out_params, operation, name="kernel", *, preamble=""):
        if compiler() is None:
            raise RuntimeError("the stand-in for CuPy needs a C++ compiler to run kernels: c++, g++ or clang++")
        if not name.isidentifier():
            raise ValueError(f"Invalid kernel name: {name!r}")
        self.name = name
        self._ins, self._outs = parse(in_params, True), parse(out_params, False)
        # Constants become inputs: else each new value would be compiled anew.
        constant = r"constexpr int (\w+) = (-?\d+);"
        self._constants = [(Parameter(f"int32 {key}", True), int(value))
                           for key, value in re.findall(constant, preamble)]
        self._preamble, self._operation = re.sub(constant, "", preamble), operation
        self._compiled = {}

    def __call__(self, *args, size=None):
        _memory.check_kernel()
        ins, outs = list(args[:len(self._ins)]), list(args[len(self._ins):])
        if len(ins) != len(self._ins) or (outs and len(outs) != len(self._outs)):
            raise TypeError(f"kernel {self.name} takes {len(self._ins)} inputs, and all of its {len(self._outs)} "
                            f"outputs or none, but was given {len(args)} arguments")
        given = list(zip(self._ins + self._outs, args, strict=False))
        types = self._types(given)
        shape = self._shape(given, size)
        for p in self._outs[len(outs):]:
            if p.raw and size is None:
                raise self._error(ValueError, p, "is raw and must be given")
            outs.append(fresh(np.empty(shape, p.dtype or types[p.type])))
        if math.prod(shape):
            self._run(types, shape, list(zip(self._ins + self._outs, ins + outs, strict=True)))
        return outs[0] if len(outs) == 1 else tuple(outs)

    def _error(self, kind, parameter, problem):
        return kind(f"kernel {self.name}: {parameter.name!r} {problem}")

    def _types(self, given):
        """The dtype of every letter. Arrays decide, and scalars follow."""
        types = {}
        for p, arg in given:
            if isinstance(arg, ndarray):
                expected = p.dtype or types.setdefault(p.type, arg.dtype)
                if arg.dtype != expected:
                    raise self._error(TypeError, p, f"has dtype {arg.dtype}, but {p.type} is {expected}")
            elif p.raw or not p.is_input or not isinstance(arg, SCALARS):
                raise self._error(TypeError, p, f"must be an array of the device, not {type(arg)}")
        for p in self._ins + self._outs:
            if p.dtype is None and p.type not in types:
                raise self._error(TypeError, p, f"is of type {p.type}, which no array tells")
        return types

    def _shape(self, given, size):
        """The shape of the loop: that of all arrays together that are not raw, or `size` where all are raw."""
        arrays = [(p, arg) for p, arg in given if isinstance(arg, ndarray) and not p.raw]
        if bool(arrays) == (size is not None):
            raise ValueError(f"kernel {self.name}: size= must be given where all arrays are raw, and only there")
        shape = np.broadcast_shapes(*(arg.shape for _, arg in arrays)) if arrays else (size,)
        for p, arg in arrays:
            if not p.is_input and arg.shape != shape:
                raise self._error(ValueError, p, f"has shape {arg.shape}, where the loop has {shape}")
        return shape

    def _run(self, types, shape, given):
        given = self._constants + given
        hosts = [self._host(p, types, arg, shape) for p, arg in given]
        # The numbers of a flat array are much faster to find. Arrays that are not raw share their axes.
        flat = all(host.flags.c_contiguous for (p, _), host in zip(given, hosts, strict=True) if not p.raw)
        hosts = [host.reshape(-1) if host.flags.c_contiguous and (p.raw or flat) else host
                 for (p, _), host in zip(given, hosts, strict=True)]
        key = (*types.items(), *(isinstance(arg, ndarray) for _, arg in given))
        if key not in self._compiled:
            self._compiled[key] = compiled(self._source(types, given))
        run = self._compiled[key]
        arrays = [(ctypes.c_ssize_t * host.ndim)(*values) for host in hosts for values in (host.shape, host.strides)]
        pointers, fault = ctypes.POINTER(ctypes.c_ssize_t) * len(hosts), (ctypes.c_ssize_t * 3)()
        run(ctypes.c_ssize_t(math.prod(shape)), (ctypes.c_void_p * len(hosts))(*(host.ctypes.data for host in hosts)),
            (ctypes.c_int * len(hosts))(*(host.ndim for host in hosts)), pointers(*arrays[::2]),
            pointers(*arrays[1::2]), fault)
        kind, number, index = fault
        if kind == 1:
            problem = f"has {hosts[number].size} numbers, and index {index} is outside"
            raise self._error(IndexError, given[number][0], problem)
        if kind == 2:
            problem = f"is written to at index {index} by two iterations, which on a GPU run at once"
            raise self._error(RuntimeError, given[number][0], problem)
        if kind == 3:
            raise self._error(RuntimeError, given[number][0], f"is not aligned to its type, at index {index}")

    def _host(self, parameter, types, arg, shape):
        """The host array of an argument, as the C++ function expects it."""
        if not isinstance(arg, ndarray):
            dtype = parameter.dtype or types[parameter.type]
            if not np.can_cast(np.min_scalar_type(arg), dtype, "same_kind"):
                raise self._error(TypeError, parameter, f"is {arg!r}, but must be {dtype}")
            return np.asarray(dtype.type(arg))
        if not parameter.is_input and not arg._host.flags.writeable:
            raise self._error(ValueError, parameter, "is a broadcast array, whose numbers share their places")
        return arg._host if parameter.raw else np.broadcast_to(arg._host, shape)

    def _source(self, types, given):
        """The C++ program: scalars and raw arrays are set up before the loop, other arrays in each iteration."""
        before, each, finish = [], [], []
        for k, (p, arg) in enumerate(given):
            kind = p.type if p.dtype is None else C_TYPES[p.dtype.name]
            const = "const " if p.is_input else ""
            layout = f"_ndims[{k}], _shapes[{k}], _strides[{k}]"
            if not isinstance(arg, ndarray):
                before.append(f"const {kind} {p.name} = *static_cast<{kind}*>(_data[{k}]);")
            elif p.raw:
                before.append(f"{const}stand_in::Raw<{kind}> {p.name}(_data[{k}], {k}, {layout});")
                finish += [] if p.is_input else [f"{p.name}.finish(_order.now);"]
            else:
                each.append(f"{const}{kind} &{p.name} = *reinterpret_cast<{kind}*>("
                            f"stand_in::place(_data[{k}], i, {layout}));")
        typedefs = "".join(f"typedef {C_TYPES[dtype.name]} {letter};\n" for letter, dtype in types.items())
        return SOURCE.format(header=HEADER, typedefs=typedefs, preamble=self._preamble, operation=self._operation,
                             before=" ".join(before), each=" ".join(each), finish=" ".join(finish))
