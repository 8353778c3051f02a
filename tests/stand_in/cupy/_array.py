"""The array of the pretended device: a NumPy array that nobody may take for one."""

import operator
import types

import numpy as np

from . import _memory, stand_in

SCALARS = (np.generic, bool, int, float, complex)
# Functions that multiply matrices: cuBLAS's, not kernels that CuPy compiles.
PRODUCTS = {"dot", "einsum", "inner", "kron", "matmul", "outer", "tensordot", "vdot"}
# Functions that only set or copy memory, or look at it in another way.
NO_KERNEL = {"as_strided", "broadcast_to", "copy", "expand_dims", "flatten", "moveaxis", "ravel", "reshape", "squeeze",
             "swapaxes", "transpose", "view", "zeros", "zeros_like"}
# Functions that need no array.
MAKERS = {"arange", "broadcast_shapes", "eye", "full", "identity", "indices", "linspace", "logspace", "ones", "tri",
          "zeros"}
# Functions that must know numbers on the device to know the shape of their result.
WAITING = {"argwhere", "bincount", "compress", "delete", "extract", "flatnonzero", "histogram", "intersect1d",
           "nonzero", "setdiff1d", "trim_zeros", "union1d", "unique"}


def refuse(value):
    """The TypeError for an operand that is not on the device."""
    return TypeError(f"Unsupported type {type(value)}: upload it with cupy.asarray, or take the others to the host "
                     "with .get()")


def to_host(value, found):
    """An argument with arrays of the device replaced by their host arrays; `found` collects the device arrays."""
    if isinstance(value, ndarray):
        found.append(value)
        return value._host
    if isinstance(value, np.ndarray):
        raise refuse(value)
    if isinstance(value, (list, tuple)):
        before = len(found)
        parts = [to_host(part, found) for part in value]
        strangers = [part for part in value if not isinstance(part, (ndarray, list, tuple))]
        if strangers and len(found) > before:
            raise refuse(strangers[0])
        return type(value)(parts)
    return value


def to_device(result):
    """What NumPy returned, with its arrays and scalars as arrays of the device."""
    if isinstance(result, (np.ndarray, np.generic)):
        return ndarray._of(np.asarray(result))
    if isinstance(result, (list, tuple)):
        return (list if isinstance(result, list) else tuple)(map(to_device, result))
    return result


def poison(host):
    """Fill new memory with what nobody takes for a result."""
    kind = host.dtype.kind
    host[...] = np.nan if kind in "fc" else True if kind == "b" else np.iinfo(host.dtype).max // 3 * 2 + 1


def check_operands(kind, name, args):
    """Only arrays of the device are multiplied, and nothing but them and scalars is an operand of a ufunc."""
    if name in PRODUCTS:
        operands, allowed = args[1:] if name == "einsum" else args[:2], ndarray
    elif kind == "ufunc" or name in ("clip", "where"):
        operands, allowed = args, (ndarray, *SCALARS, type(None))
    else:
        return
    for operand in operands:
        if not isinstance(operand, allowed):
            raise refuse(operand)


def forward(path, name, function):
    """CuPy's function `path.name`, with what it takes and refuses, computed by a function of NumPy's on the host."""
    kind, _ = stand_in.require(path, name)
    check = stand_in.signature(path, name)
    library = (_memory.check_product if name in PRODUCTS else _memory.check_device if name in NO_KERNEL
               else _memory.check_kernel)

    def call(*args, **kwargs):
        check(*args, **kwargs)
        check_operands(kind, name, args)
        found = []
        host_args = [to_host(arg, found) for arg in args]
        host_kwargs = {key: to_host(arg, found) for key, arg in kwargs.items()}
        if not found and kind != "ufunc" and name not in MAKERS:
            raise refuse(args[0] if args else None)
        library()
        if name in WAITING or (name == "where" and len(args) == 1):
            stand_in.count_wait()
        with _memory.allocating(), np.errstate(all="ignore"):  # a GPU says nothing of an overflow
            result = function(*host_args, **host_kwargs)
            if name in ("allclose", "array_equal", "array_equiv"):
                result = np.bool_(result)  # NumPy gives a bool of Python's, CuPy an array
            for array in found:
                if array._host is result:  # an `out`, which is itself the result
                    return array
            return to_device(result)

    call.__name__ = call.__qualname__ = name
    return call


class Flags:
    """How an array lies in memory."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata

    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:
    """cupy.ndarray: its numbers are on the pretended device, and come to the host only where it is asked for them."""

    __slots__ = ("__weakref__", "_host")
    __array_ufunc__ = None  # so that NumPy leaves operators to this class, and its functions refuse
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, *args, **kwargs):
        stand_in.signature("cupy", "ndarray")(*args, **kwargs)
        options = dict(zip(("shape", "dtype", "memptr", "strides", "order"), args, strict=False)) | kwargs
        if {"memptr", "strides"} & options.keys():
            raise NotImplementedError("the stand-in has no cupy.ndarray of given memory or strides")
        with _memory.allocating():
            self._host = np.empty(**options)
        self._enter()
        poison(self._host)

    @classmethod
    def _of(cls, host):
        """The array whose numbers are those of a host array that nobody else has."""
        self = object.__new__(cls)
        self._host = host
        self._enter()
        return self

    def _enter(self):
        _memory.check_device()
        if self._host.dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {self._host.dtype}")
        _memory.pool._charge(self._host)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
                        "array explicitly.")

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of an array of the device: call cupy.{function.__name__}, or use "
                        "`.get()` to construct a NumPy array explicitly.")

    # What makes the host wait.

    def get(self, stream=None, order="C", out=None, blocking=True):
        if blocking:
            stand_in.count_wait()
        if out is None:
            return np.array(self._host, order=order)
        if not isinstance(out, np.ndarray) or (out.shape, out.dtype) != (self.shape, self.dtype):
            raise TypeError("`out` must be a numpy.ndarray of the same shape and dtype")
        out[...] = self._host
        return out

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __complex__(self):
        return complex(self.item())

    def __bool__(self):
        return bool(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, format_spec):
        return format(self.get(), format_spec)

    def __reduce__(self):
        return uploaded, (self.get(),)

    # Indices. Every part of an array is a view of it, a single number as well.

    def _key(self, slices):
        parts = slices if isinstance(slices, tuple) else (slices,)
        for part in parts:
            if not (part is None or part is Ellipsis or isinstance(part, (slice, int, np.integer, ndarray))):
                raise TypeError(f"Unsupported index of {type(part)}: upload it with cupy.asarray")
        host = tuple(part._host if isinstance(part, ndarray) else part for part in parts)
        return host if any(part is Ellipsis for part in parts) else (*host, Ellipsis)

    def __getitem__(self, slices):
        key = self._key(slices)
        arrays = [part for part in key if isinstance(part, np.ndarray)]
        if arrays:
            _memory.check_kernel()
        if any(part.dtype == bool for part in arrays):
            stand_in.count_wait()  # only the device knows how many are true
        return to_device(self._host[key])

    def __setitem__(self, slices, value):
        if not isinstance(value, (ndarray, *SCALARS)):
            raise refuse(value)
        _memory.check_kernel()
        with np.errstate(all="ignore"):
            self._host[self._key(slices)] = value._host if isinstance(value, ndarray) else value

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self._host)))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray) or (arr.shape, arr.dtype) != (self.shape, self.dtype):
            raise TypeError("only a numpy.ndarray of the same shape and dtype can be set to a cupy.ndarray")
        stand_in.count_upload()
        self._host[...] = arr

    shape = property(lambda self: self._host.shape, lambda self, shape: setattr(self._host, "shape", shape))
    flags = property(lambda self: Flags(self._host.flags))
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data, device_id=0))
    base = property(lambda self: None if self._host.base is None else to_device(np.asarray(self._host.base)))

    def __getattr__(self, name):
        if not name.startswith("__"):
            stand_in.require("cupy.ndarray", name)
            raise NotImplementedError(f"the stand-in has no cupy.ndarray.{name}, which CuPy has")
        raise AttributeError(name)


def uploaded(numbers, *args, **kwargs):
    """A new array of the device with numbers of the host."""
    _memory.check_device()
    stand_in.count_upload()
    with _memory.allocating():
        return ndarray._of(np.array(numbers, *args, **kwargs))


OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
             "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
             "lshift": "left_shift", "rshift": "right_shift", "divmod": "divmod", "matmul": "matmul", "lt": "less",
             "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
             "neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _add_operators(method, function):
    methods = {method: lambda *args: function(*args), f"r{method}": lambda a, b: function(b, a),
               f"i{method}": lambda a, b: function(a, b, out=a)}
    for name, operation in methods.items():
        if f"__{name}__" in stand_in.MANIFEST["cupy.ndarray"]:  # CuPy has no __imatmul__, say
            setattr(ndarray, f"__{name}__", operation)


def _add_attributes():
    for name in ("dtype", "itemsize", "nbytes", "ndim", "size", "strides"):
        setattr(ndarray, name, property(operator.attrgetter(f"_host.{name}")))
    for name in ("T", "imag", "mT", "real"):
        setattr(ndarray, name, property(lambda self, name=name: to_device(getattr(self._host, name))))
    for method, name in OPERATORS.items():
        _add_operators(method, forward("cupy", name, getattr(np, name)))
    for name, (kind, _) in stand_in.MANIFEST["cupy.ndarray"].items():
        if kind == "function" and not name.startswith("_") and name not in vars(ndarray) and hasattr(np.ndarray, name):
            setattr(ndarray, name, forward("cupy.ndarray", name, getattr(np.ndarray, name)))


_add_attributes()
ndarray.__module__ = "cupy"
