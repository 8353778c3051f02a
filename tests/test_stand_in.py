"""The stand-in for CuPy refuses what it should: each rule is fed the mistake that it is there for.

It is loaded here under a name of its own, beside whatever the other tests know as cupy.
"""

import copy
import importlib.util
import inspect
import operator
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

STAND_IN = Path(__file__).parent / "stand_in"


def load():
    spec = importlib.util.spec_from_file_location("stand_in_for_cupy", STAND_IN / "cupy" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cp = load()
counting, stand_in = cp.stand_in.counting, cp.stand_in
needs_compiler = pytest.mark.skipif(sys.modules["stand_in_for_cupy._kernel"].compiler() is None,
                                    reason="the stand-in runs kernels with a C++ compiler, and there is none here")
HOST = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def x():
    return cp.asarray(HOST)


def assert_holds(array, expected):
    assert type(array) is cp.ndarray
    np.testing.assert_array_equal(array.get(), expected)


# Arrays of the host and of the device do not mix.


def assign(target, index, value):
    target[index] = value


def add_in_place(target, value):
    target += value


GET = r"\.get\(\)"
MISTAKES = {
    "function of NumPy's": (lambda x: np.exp(x), "ufunc"),
    "reduction of NumPy's": (lambda x: np.sum(x), GET),
    "concatenate of NumPy's": (lambda x: np.concatenate([x, x]), GET),
    "ufunc of NumPy's with both": (lambda x: np.add(HOST, x), "ufunc"),
    "ufunc of NumPy's into the device": (lambda x: np.add(HOST, HOST, out=x), "ufunc|array"),
    "np.asarray": (lambda x: np.asarray(x), GET),
    "np.array": (lambda x: np.array([x, x]), GET),
    "np.float32": (lambda x: np.float32(x[0, 0]), GET),
    "buffer": (memoryview, "bytes-like"),
    "host + device": (lambda x: HOST + x, GET),
    "device + host": (lambda x: x + HOST, GET),
    "host @ device": (lambda x: HOST.T @ x, GET),
    "device @ host": (lambda x: x @ HOST.T, GET),
    "host < device": (lambda x: operator.lt(HOST, x), GET),
    "device == host": (lambda x: x == HOST, GET),
    "device + host of no axes": (lambda x: x + np.array(1.0), GET),
    "device + list": (lambda x: x * [1, 2, 3, 4], "list"),
    "host += device": (lambda x: add_in_place(HOST.copy(), x), "ufunc"),
    "device += host": (lambda x: add_in_place(x, HOST), GET),
    "device[...] = host": (lambda x: assign(x, ..., HOST), GET),
    "device[...] = host of no axes": (lambda x: assign(x, ..., np.array(1.0)), GET),
    "device[...] = list": (lambda x: assign(x, 0, [1, 2, 3, 4]), GET),
    "host[...] = device": (lambda x: assign(HOST.copy(), ..., x), GET),
    "device[host]": (lambda x: x[np.array([0, 1])], "upload"),
    "device[host mask]": (lambda x: x[HOST > 3], "upload"),
    "device[list]": (lambda x: x[[0, 1]], "upload"),
    "device[host] = device": (lambda x: assign(x, np.array([0, 1]), x[:2]), "upload"),
    "host[device]": (lambda x: HOST[x.astype(int)], GET),
    "cupy.add with the host": (lambda x: cp.add(x, HOST), GET),
    "cupy.add into the host": (lambda x: cp.add(x, x, out=HOST.copy()), GET),
    "cupy.exp of the host": (lambda x: cp.exp(HOST), GET),
    "cupy.sum of the host": (lambda x: cp.sum(HOST), GET),
    "cupy.sum of a list": (lambda x: cp.sum([1, 2]), GET),
    "cupy.where with the host": (lambda x: cp.where(x > 0, x, HOST), GET),
    "cupy.where with a list": (lambda x: cp.where(x > 0, x, [1, 2, 3, 4]), GET),
    "cupy.matmul with the host": (lambda x: cp.matmul(x, HOST.T), GET),
    "cupy.vdot with a list": (lambda x: cp.vdot(x[0], [1, 2, 3, 4]), GET),
    "cupy.einsum with the host": (lambda x: cp.einsum("ij,ij", x, HOST), GET),
    "cupy.concatenate of both": (lambda x: cp.concatenate([x, HOST]), GET),
    "cupy.concatenate of the host": (lambda x: cp.concatenate([HOST, HOST]), GET),
    "cupy.stack with a number": (lambda x: cp.stack([x.sum(), 1.0]), GET),
    "cupy.zeros_like of the host": (lambda x: cp.zeros_like(HOST), GET),
    "cupy.empty_like of the host": (lambda x: cp.empty_like(HOST), GET),
    "method with the host": (lambda x: x.dot(HOST.T), GET),
    "an index": (lambda x: range(x.size)[x[0, 1].astype(int)], "indices must be integers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_host_and_the_device_do_not_mix(x, mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(TypeError, match=message):
        make(x)


def test_scalars_mix_with_the_device_and_keep_its_dtype(x):
    for scalar in (2, 2.0, np.float32(2)):
        for result, expected in ((x * scalar, HOST * 2), (scalar - x, 2 - HOST), (x > scalar, HOST > 2),
                                 (cp.maximum(x, scalar), np.maximum(HOST, 2)), (cp.where(x > 2, scalar, x),
                                                                                np.where(HOST > 2, 2, HOST))):
            assert_holds(result, expected)
            assert result.dtype == expected.dtype
    assert (np.float64(2) * x).dtype == np.float64
    x[0], x[1, 2] = np.float32(3), 5
    assert x.get()[0].tolist() == [3] * 4 and x.get()[1, 2] == 5


# CuPy's names and keywords, and no others.

LACKING_NAMES = {
    "cupy.errstate": lambda: cp.errstate,
    "cupy.emath": lambda: cp.emath,
    "cupy.linalg.multi_dot": lambda: cp.linalg.multi_dot,
    "cupy.lib.stride_tricks.broadcast_to": lambda: cp.lib.stride_tricks.broadcast_to,
    "cupy.cuda.runtime.getDevices": lambda: cp.cuda.runtime.getDevices,
    "cupy.ndarray.newbyteorder": lambda: cp.zeros(3).newbyteorder,
    "cupy.random.Generator.permutation": lambda: cp.random.default_rng(0).permutation(5),
    "cupy.random.Generator.shuffle": lambda: cp.random.default_rng(0).shuffle(cp.zeros(3)),
    "cupy.random.Generator.normal": lambda: cp.random.default_rng(0).normal(),
}
LACKING_KEYWORDS = {
    "where": lambda x: cp.add(x, x, where=x > 0),
    "order": lambda x: cp.exp(x, order="C"),
    "initial": lambda x: cp.max(x, initial=0),
    "keepdims": lambda x: x.cumsum(keepdims=True),
    "subok": lambda x: x.copy(subok=True),
    "out": lambda x: cp.tensordot(x, x, out=x),
    "like": lambda x: cp.zeros(3, like=x),
    "writeable": lambda x: cp.lib.stride_tricks.as_strided(x, (2,), (4,), writeable=False),
    "endpoint": lambda x: cp.random.default_rng(0).standard_normal(3, endpoint=True),
    "dtype": lambda x: x.max(dtype="float64"),
    "cast": lambda x: x.astype("float64", cast="safe"),
}


@pytest.mark.parametrize("name", LACKING_NAMES)
def test_a_name_that_cupy_lacks_is_an_error_that_says_so(name):
    with pytest.raises(AttributeError, match=rf"CuPy 14\S+ has no {name}$"):
        LACKING_NAMES[name]()


@pytest.mark.parametrize("name", LACKING_KEYWORDS)
def test_a_keyword_that_cupy_lacks_is_an_error_that_says_so(x, name):
    with pytest.raises(TypeError, match=r"^CuPy 14\S+ cupy\.\S+\(\) (got an unexpected|takes)"):
        LACKING_KEYWORDS[name](x)


def test_einsum_has_no_out(x):
    assert_holds(cp.einsum("ij,kj->ik", x, x), HOST @ HOST.T)
    with pytest.raises(TypeError, match=r"einsum\(\) .* 'out'"):
        cp.einsum("ij,kj->ik", x, x, out=cp.zeros((3, 3)))


@pytest.mark.parametrize("name", ["fft", "RawKernel", "fuse"])
def test_what_cupy_has_and_the_stand_in_lacks_is_another_error(name):
    with pytest.raises(NotImplementedError, match=f"stand-in has no cupy.{name}"):
        getattr(cp, name)


def own_names():
    """What the stand-in itself defines, and the namespace of CuPy's that must have it."""
    yield from (("cupy", name, value) for name, value in vars(cp).items())
    for path in ("cupy.linalg", "cupy.random", "cupy.cuda", "cupy.cuda.runtime", "cupy.ndarray", "cupy.cuda.Device",
                 "cupy.cuda.Stream", "cupy.cuda.MemoryPool", "cupy.ElementwiseKernel"):
        owner = cp
        for name in path.split(".")[1:]:
            owner = getattr(owner, name)
        yield from ((path, name, value) for name, value in vars(owner).items())


def test_the_stand_in_defines_nothing_that_cupy_lacks_and_takes_the_same_parameters():
    for path, name, value in own_names():
        if name.startswith("_") or (path, name) in (("cupy", "stand_in"), ("cupy", "lib")):
            continue
        kind, parameters = stand_in.require(path, name)
        if kind == "function" and isinstance(value, types.FunctionType) and parameters is not None and (
                value.__name__ != "call" and not value.__code__.co_flags & inspect.CO_VARARGS):
            expected = inspect.signature(stand_in.signature(path, name)).parameters
            assert list(inspect.signature(value).parameters) == list(expected), f"{path}.{name}"


def test_dtypes_and_constants_are_numpys():
    assert cp.float32 is np.float32 and cp.dtype is np.dtype and cp.newaxis is None and cp.pi == np.pi


# Views.

VIEWS = {
    "slice": lambda a: a[1:, ::2],
    "row": lambda a: a[1],
    "number": lambda a: a[1, 2],
    "reversed": lambda a: a[::-1],
    "new axis": lambda a: a[:, None],
    "reshape": lambda a: a.reshape(4, 3),
    "ravel": lambda a: a.ravel(),
    "T": lambda a: a.T,
    "transpose": lambda a: a.transpose(1, 0),
    "swapaxes": lambda a: a.swapaxes(0, 1),
    "view": lambda a: a.view(),
    "part of a part": lambda a: a[1:][:, 1:].T[0],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_write_through(x, name):
    expected = HOST.copy()
    for array in (x, expected):
        view = VIEWS[name](array) if name != "number" or array is x else array[1, 2, ...]
        view += 100
        view[...] = view * 2
    assert_holds(x, expected)


def test_strided_views_write_through(x):
    windows = cp.lib.stride_tricks.as_strided(x, (2, 2), (16, 4))
    windows[...] = 7
    assert x.get()[:2, :2].tolist() == [[7, 7], [7, 7]]


def test_an_output_is_itself_the_result(x):
    out = cp.empty_like(x)
    assert cp.add(x, 1, out=out) is out and cp.matmul(x, x.T, out=cp.empty((3, 3), "float32")).shape == (3, 3)
    assert_holds(out, HOST + 1)
    before = x
    x -= 1
    assert x is before
    x @= cp.eye(4, dtype="float32")
    assert x is not before, "CuPy has no __imatmul__"


def test_reductions_and_indices_give_arrays_of_no_axes(x):
    for result in (x.sum(), cp.vdot(x, x), x[1, 2], x.max(), cp.sqrt(x[0, 0]), cp.allclose(x, x)):
        assert type(result) is cp.ndarray and result.shape == ()
    assert [row.shape for row in x] == [(4,)] * 3 and len(x) == 3


def test_attributes(x):
    assert (x.shape, x.dtype, x.ndim, x.size, x.strides, x.nbytes, x.itemsize) == (
        (3, 4), np.float32, 2, 12, (16, 4), 48, 4)
    assert x.flags.c_contiguous and not x.T.flags.c_contiguous and x.T.flags["F_CONTIGUOUS"]
    assert x[1:].base is not None and x.base is None and x[1].data.ptr == x.data.ptr + 16


def test_new_memory_is_full_of_nonsense():
    for array in (cp.empty((2, 3), "float32"), cp.empty_like(cp.zeros(3)), cp.ndarray((2, 2))):
        assert np.isnan(array.get()).all()
    for dtype in ("int32", "uint8", "int64"):
        assert cp.empty(3, dtype).get().min() > 100


# What is counted.

WAITS = {
    "get": lambda x: x.get(),
    "asnumpy": lambda x: cp.asnumpy(x),
    "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[0, 0]),
    "bool": lambda x: bool(x[0, 0]),
    "if": lambda x: 1 if x.sum() > 3 else 0,
    "max of Python's": lambda x: max(x[0, 0], x[0, 1]),
    "item": lambda x: x[0, 0].item(),
    "tolist": lambda x: x.tolist(),
    "print": lambda x: str(x),
    "repr": lambda x: repr(x),
    "format": lambda x: f"{x[0, 1]:.3f}",
    "pickle": lambda x: x.__reduce__(),
    "mask": lambda x: x[x > 3],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: cp.unique(x),
    "device": lambda x: cp.cuda.Device().synchronize(),
    "stream": lambda x: cp.cuda.Stream.null.synchronize(),
    "runtime": lambda x: cp.cuda.runtime.deviceSynchronize(),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted_with_their_place(x, name):
    with counting() as counts:
        WAITS[name](x)
    assert (counts.waits, counts.uploads) == (1, 0)
    assert counts.wait_places[0].startswith(f"{__file__}:")


def test_uploads_are_counted_and_computing_is_not(x):
    with counting() as counts:
        y = cp.asarray(HOST)
        cp.array([1.0, 2.0])
    assert (counts.waits, counts.uploads) == (0, 2)
    with counting() as counts:
        assert cp.asarray(y) is y
        y += x @ x.T @ y
        y[1:] = cp.zeros((2, 4))
        y[y > 3] = 0
        cp.concatenate([x, y]).sum(axis=0).astype("float64")
        for row in y:
            row *= 2
    assert (counts.waits, counts.uploads, counts.wait_places) == (0, 0, [])


def test_an_upload_is_a_copy():
    host = HOST.copy()
    x = cp.asarray(host)
    host[...] = 0
    assert_holds(x, HOST)
    x.get()[...] = 0
    assert_holds(x, HOST)


def test_all_threads_count(x):
    with counting() as counts:
        threads = [threading.Thread(target=lambda: [float(x[0, 0]) for _ in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts.waits == 800


# Memory, and a device that is not well.


@pytest.fixture
def pool():
    pool = cp.get_default_memory_pool()
    yield pool
    pool.set_limit(size=0)


def test_memory_is_counted_by_owner_and_freed(pool):
    before = pool.used_bytes()
    x = cp.zeros((1 << 18,), "float32")
    view = x[10:].reshape(2, -1)
    assert pool.used_bytes() - before == 1 << 20
    del x
    assert pool.used_bytes() - before == 1 << 20, "the view keeps it"
    del view
    assert pool.used_bytes() == before


def test_out_of_memory(pool):
    pool.set_limit(size=pool.used_bytes() + (1 << 20))
    x = cp.zeros((1 << 17,), "float32")
    for allocate in (lambda: cp.zeros((1 << 19,)), lambda: cp.empty((1 << 19,)), lambda: cp.asarray(np.zeros(1 << 19)),
                     lambda: cp.concatenate([x, x, x])):
        with pytest.raises(cp.cuda.memory.OutOfMemoryError, match=r"^Out of memory allocating [\d,]+ bytes"):
            allocate()
    assert issubclass(cp.cuda.memory.OutOfMemoryError, MemoryError)
    pool.set_limit(size=0)
    assert cp.concatenate([x, x, x]).size == 3 << 17
    for allocate in (cp.empty, cp.zeros):  # more than the host can promise
        with pytest.raises(cp.cuda.memory.OutOfMemoryError):
            allocate((1 << 50,))
    free, total = cp.cuda.runtime.memGetInfo()
    assert 0 < free < total


FAULTS = {
    "no_driver": (lambda: cp.zeros(3), RuntimeError, "cudaErrorInsufficientDriver"),
    "old_driver": (lambda: cp.asarray(HOST), RuntimeError, "cudaErrorInsufficientDriver"),
    "no_gpu": (lambda: cp.zeros(3), RuntimeError, "cudaErrorNoDevice"),
    "no_nvrtc": (lambda: cp.zeros(3) + 1, RuntimeError, "libnvrtc"),
    "no_cublas": (lambda: cp.ones((2, 2)) @ cp.ones((2, 2)), ImportError, "libcublas"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(monkeypatch, fault):
    attempt, error, message = FAULTS[fault]
    attempt()
    monkeypatch.setattr(stand_in, "fault", fault)
    with pytest.raises(error, match=message):
        attempt()
    runtime = cp.cuda.runtime
    if fault.startswith("no_n") or fault.startswith("no_c"):
        assert cp.cuda.is_available() and cp.zeros(3).shape == (3,)
        return
    assert not cp.cuda.is_available()
    with pytest.raises(runtime.CUDARuntimeError) as caught:
        runtime.getDeviceCount()
    assert caught.value.status == (100 if fault == "no_gpu" else 35)
    assert runtime.driverGetVersion() == {"no_driver": 0, "old_driver": 11040, "no_gpu": 12090}[fault]
    assert runtime.runtimeGetVersion() == 12090


def test_another_process_finds_it_as_cupy_and_its_fault():
    code = "import cupy, cupy.cuda; print(cupy.__name__, cupy.__version__, cupy.cuda.is_available())"
    environment = os.environ | {"PYTHONPATH": str(STAND_IN), "STAND_IN_FAULT": "no_gpu"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["cupy", stand_in.VERSION, "False"]


def test_copies_and_random_numbers(x):
    for made in (copy.copy(x), copy.deepcopy(x), x.copy(), x.__reduce__()[0](*x.__reduce__()[1])):
        made += 1
        assert_holds(x, HOST)
    rng = cp.random.default_rng(0)
    assert rng.standard_normal((2, 3), dtype="float32").dtype == np.float32
    assert rng.random(4).shape == (4,) and rng.integers(0, 5, size=3).shape == (3,)


# Kernels.


def kernel(*args, **kwargs):
    return cp.ElementwiseKernel(*args, **kwargs)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_computes_on_strided_inputs_and_outputs(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 8)).astype(dtype)
    raw = rng.standard_normal((5, 7)).astype(dtype)
    device = [cp.asarray(array) for array in (a, b, raw)]
    body = "const T s = exp(-abs(x)) * twice(y); z = max(s, r[i % 35]) + fmaxf(rate, 0) * h; w = i;"
    preamble = "__device__ __forceinline__ float twice(float v) { return 2 * v; }\n" \
               "__device__ double twice(double v) { return 2 * v; }"
    compute = kernel("T x, T y, raw T r, int32 h, T rate", "T z, int64 w", body, "strided", preamble=preamble)
    views = device[0][::2, 1::2], device[1][1::2, ::-2].T.copy().T, device[2].T
    out, places = cp.zeros((4, 6), dtype).T[::2], cp.empty((3, 4), "int64")
    with counting() as counts:
        compute(*views, 3, 0.5, out, places)
    assert counts.launches == ["strided"] and counts.waits == 0
    flat = raw.T.ravel()[np.arange(12)].reshape(3, 4)
    x, y = a[::2, 1::2], b[1::2, ::-2]
    expected = np.maximum(np.exp(-np.abs(x)) * 2 * y, flat) + 1.5
    np.testing.assert_allclose(out.get(), expected, rtol=1e-6 if dtype == "float32" else 1e-14)
    assert_holds(places, np.arange(12).reshape(3, 4))
    made, _ = compute(*views, 3, 0.5)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made.get(), out.get())


@needs_compiler
def test_a_kernel_broadcasts_inputs_and_may_write_to_them(x):
    add = kernel("T x, T y", "T z", "z = x + y", "add")
    assert_holds(add(x, x[0]), HOST + HOST[0])
    assert_holds(add(x[:, :1], x[0]), HOST[:, :1] + HOST[0])
    assert_holds(add(x, 2.5), HOST + 2.5)
    assert add(x, x, x) is x
    assert_holds(x, 2 * HOST)
    with pytest.raises(ValueError, match="'z' has shape"):
        add(x, x, x[:1])
    assert_holds(add(x[:1], x[:1], cp.empty_like(x)), np.broadcast_to(4 * HOST[0], (3, 4)))
    with pytest.raises(ValueError, match="broadcast"):
        add(x, x, cp.broadcast_to(cp.zeros(4, "float32"), (3, 4)))


@needs_compiler
def test_raw_arrays_take_a_size_and_other_arrays_do_not(x):
    reverse = kernel("raw T x", "raw T y", "y[i] = x[x.size() - 1 - i]; if (i == _ind.size()) y[0] = 0;", "reverse")
    y = cp.empty_like(x)
    reverse(x.T, y, size=12)
    assert_holds(y, HOST.T.ravel()[::-1].reshape(3, 4))
    assert_holds(reverse(x, size=12), HOST.ravel()[::-1])
    add = kernel("T x", "T y", "y = x", "copy")
    scatter = kernel("T x", "raw T y", "y[i] = x", "scatter")
    for wrong in (lambda: reverse(x, y), lambda: add(x, size=12), lambda: reverse(x), lambda: scatter(x)):
        with pytest.raises(ValueError, match=r"size=|raw"):
            wrong()
    assert reverse(x, y, size=0) is y


@needs_compiler
@pytest.mark.parametrize("index", [-1, 12, 10**12])
def test_an_index_outside_is_an_error(x, index):
    read = kernel("raw T x, int64 k", "T y", "y = i == 5 ? x[k] : x[i]", "read")
    write = kernel("T x, int64 k", "raw T y", "if (i == 5) y[k] = x;", "write")
    assert_holds(read(x, 11, cp.empty(12, "float32")), [0, 1, 2, 3, 4, 11, 6, 7, 8, 9, 10, 11])
    with pytest.raises(IndexError, match=f"kernel read: 'x' has 12 numbers, and index {index} is outside"):
        read(x, index, cp.empty(12, "float32"))
    with pytest.raises(IndexError, match=f"kernel write: 'y' has 12 numbers, and index {index} is outside"):
        write(x, index, cp.empty(12, "float32"))


@needs_compiler
@pytest.mark.parametrize("body", ["y[i / 2] = x", "y[i / 2] += x", "y[0] = x", "y[3] *= x + 2"])
def test_two_iterations_that_write_to_one_place_show(x, body):
    with pytest.raises(RuntimeError, match=r"'y' is written to at index \d+ by two iterations"):
        kernel("T x", "raw T y", body, "collide")(x, cp.ones(12, "float32"))


@needs_compiler
def test_kernels_of_other_constants_run_at_once_in_threads():
    wrong, x = [], cp.ones(100_000)

    def run(factor):
        # rand() makes the compiled code read F anew each time.
        scale = kernel("T x", "T y", "y = rand() < 0 ? x : F * x", preamble=f"constexpr int F = {factor};\n")
        wrong.extend(factor for _ in range(10) if (scale(x).get() != factor).any())

    threads = [threading.Thread(target=run, args=(factor,)) for factor in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_compiler
def test_writing_often_to_ones_own_place_is_no_collision(x):
    y = cp.zeros(12, "float32")
    kernel("T x", "raw T y", "y[i] = 1; for (int k = 0; k < 3; k++) y[i] += x; if (i % 2) continue; y[i] = -1",
           "own")(x, y)
    expected = np.where(np.arange(12) % 2, 1 + 3 * HOST.ravel(), -1)
    assert_holds(y, expected)


@needs_compiler
def test_a_result_that_depends_on_the_order_is_wrong():
    x = cp.arange(100, dtype="float32")
    kernel("raw T x", "T y", "y = x[99 - i]", "in_place")(x, x)
    assert (x.get() != np.arange(100)[::-1]).any()
    y = cp.arange(100, dtype="float32")
    kernel("", "raw T y", "if (i > 0) y[i] = y[i - 1]", "shift")(y, size=100)
    assert not np.array_equal(y.get(), np.arange(100) - 1 + (np.arange(100) == 0))
    assert not np.array_equal(y.get(), np.zeros(100))


@needs_compiler
@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 100])
def test_iterations_come_once_each_and_neighbours_far_apart(size):
    turn = kernel("", "T y", "y = count++", preamble="static int count = 0;")(cp.empty(size)).get()
    turn -= turn.min()  # the variable outlives the kernel
    assert sorted(turn) == list(range(size))
    if size > 10:
        assert abs(np.diff(turn)).min() > 2


WRONG_CALLS = {
    "host array": (lambda k, x: k(HOST, 1), TypeError, "device"),
    "host output": (lambda k, x: k(x, 1, HOST.copy()), TypeError, "device"),
    "too few arguments": (lambda k, x: k(x), TypeError, "takes 2 inputs"),
    "a keyword": (lambda k, x: k(x, 1, out=x), TypeError, "out"),
    "another dtype": (lambda k, x: k(x, 1, cp.zeros((3, 4))), TypeError, "float64"),
    "an array of another dtype": (lambda k, x: k(x, cp.zeros(4, "int64")), TypeError, "int32"),
    "a fraction for an integer": (lambda k, x: k(x, 1.5), TypeError, "int32"),
    "a number too large": (lambda k, x: k(x, 1 << 40), OverflowError, None),
    "no array": (lambda k, x: k(1.0, 2), TypeError, "no array tells"),
}


@needs_compiler
@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls_of_a_kernel(x, name):
    call, error, message = WRONG_CALLS[name]
    with pytest.raises(error, match=message):
        call(kernel("T x, int32 h", "T y", "y = x + h", "wrong"), x)


@needs_compiler
@pytest.mark.parametrize("arguments", [("T i", "T y", "y = i"), ("T x", "T y", "y = x", "a name"),
                                       ("wrong T x", "T y", "y = x"), ("T", "T y", "y = 1")])
def test_wrong_kernels(arguments):
    with pytest.raises(ValueError):
        kernel(*arguments)
    with pytest.raises(TypeError, match="sizes"):
        kernel("T x", "T y", "y = x", sizes=3)


@needs_compiler
@pytest.mark.parametrize("body", ["y = n", "y = x; x = 1", "y = r[0]; r[0] = 1", "y = undeclared"])
def test_what_does_not_compile_for_cupy_does_not_compile_here(x, body):
    with pytest.raises(RuntimeError, match="does not compile"):
        kernel("T x, raw T r", "T y", body)(x, x)


def test_without_a_compiler_a_kernel_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"stand-in for CuPy needs a C\+\+ compiler"):
        kernel("T x", "T y", "y = x")


@needs_compiler
def test_processes_compile_the_same_kernel_at_once(tmp_path):
    code = ("import cupy; k = cupy.ElementwiseKernel('T x', 'T y', 'y = x + 1', 'same');"
            "print(float(k(cupy.zeros(3)).sum()))")
    environment = os.environ | {"PYTHONPATH": str(STAND_IN), "TMPDIR": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
                 for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["3.0"] * 3
    assert len(list(tmp_path.glob("*/*"))) == 1, "one library, and nothing unfinished"
