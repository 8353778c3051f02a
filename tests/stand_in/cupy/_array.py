"""The array of the pretended device: a NumPy array that nobody may take for one."""

from types import SimpleNamespace

import numpy as np

from . import _memory, stand_in

SCALARS = (np.generic, bool, int, float, complex)
# Functions that multiply matrices: cuBLAS's, not kernels that CuPy compiles.
PRODUCTS = {"dot", "einsum", "inner", "matmul", "outer", "tensordot", "vdot"}
# Functions that only set or copy memory, or look at it in another way.
NO_KERNEL = {"as_strided", "broadcast_to", "copy", "ravel", "reshape", "swapaxes", "transpose", "view", "zeros",
             "zeros_like"}
# Functions that need no array.
MAKERS = {"arange", "full", "ones", "zeros"}
# Functions that must know numbers on the device to know the shape of their result: also those that the manifest lacks,
# so that whoever adds one finds its waits counted.
WAITING = {"argwhere", "bincount", "compress", "delete", "extract", "flatnonzero", "histogram", "nonzero", "unique"}


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
    return type(result)(map(to_device, result)) if isinstance(result, (list, tuple)) else result


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
        with np.errstate(all="ignore"):  # a GPU says nothing of an overflow
            result = function(*host_args, **host_kwargs)
        for array in found:
            if array._host is result:  # an `out`, which is itself the result
                return array
        return to_device(result)

    return call


class ndarray:
    """cupy.ndarray: its numbers are on the pretended device, and come to the host only where it is asked for them."""

    __slots__ = ("_host",)
    __array_ufunc__ = None  # so that NumPy leaves operators to this class, and its functions refuse
    __hash__ = None

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("the stand-in has no cupy.ndarray(...): cupy.empty makes an array")

    @classmethod
    def _of(cls, host):
        """The array whose numbers are those of a host array that nobody else has."""
        _memory.check_device()
        if host.dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {host.dtype}")
        _memory.pool._charge(host)
        self = object.__new__(cls)
        self._host = host
        return self

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
                        "array explicitly.")

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of an array of the device: call cupy.{function.__name__}, or use "
                        "`.get()` to construct a NumPy array explicitly.")

    def get(self):
        stand_in.count_wait()
        return self._host.copy()

    def __reduce__(self):
        return uploaded, (self.get(),)

    @property
    def data(self):
        return SimpleNamespace(ptr=self._host.ctypes.data)

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
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in key):
            stand_in.count_wait()  # only the device knows how many are true
        return to_device(self._host[key])

    def __setitem__(self, slices, value):
        if not isinstance(value, (ndarray, *SCALARS)):
            raise refuse(value)
        with np.errstate(all="ignore"):
            self._host[self._key(slices)] = value._host if isinstance(value, ndarray) else value

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self._host)))

    def __getattr__(self, name):
        if not name.startswith("__"):
            stand_in.require("cupy.ndarray", name)
            raise NotImplementedError(f"the stand-in has no cupy.ndarray.{name}, which CuPy has")
        raise AttributeError(name)


def uploaded(numbers, dtype=None):
    """A new array of the device with numbers of the host."""
    _memory.check_device()
    stand_in.count_upload()
    return ndarray._of(np.array(numbers, dtype))


def fresh(host):
    """New memory of the device, full of what nobody takes for a result."""
    made, kind = ndarray._of(host), host.dtype.kind
    host[...] = np.nan if kind in "fc" else True if kind == "b" else np.iinfo(host.dtype).max // 3 * 2 + 1
    return made


OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
             "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "matmul": "matmul",
             "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
             "neg": "negative", "abs": "absolute", "invert": "invert"}


def _add_operators(method, function):
    methods = {method: lambda *args: function(*args), f"r{method}": lambda a, b: function(b, a),
               f"i{method}": lambda a, b: function(a, b, out=a)}
    for name, operation in methods.items():
        if stand_in.MANIFEST["cupy.ndarray"].get(f"__{name}__", operation):  # null where CuPy lacks it
            setattr(ndarray, f"__{name}__", operation)


def _add_attributes():
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__repr__", "__str__", "__format__"):
        setattr(ndarray, name, lambda self, *args, name=name: getattr(self.get(), name)(*args))
    for method, name in OPERATORS.items():
        _add_operators(method, forward("cupy", name, getattr(np, name)))
    for name, entry in stand_in.MANIFEST["cupy.ndarray"].items():
        if entry and name not in vars(ndarray) and hasattr(np.ndarray, name):
            setattr(ndarray, name, forward("cupy.ndarray", name, getattr(np.ndarray, name)) if entry[0] == "function"
                    else property(lambda self, name=name: to_device(getattr(self._host, name))))


_add_attributes()
ndarray.__module__ = "cupy"
