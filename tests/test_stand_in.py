"""The stand-in for CuPy refuses what it should: each rule is fed the mistake that it is there for.

It is loaded here under a name of its own, beside whatever the other tests know as cupy.
"""

import copy
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
STAND_IN = ROOT / "tests" / "stand_in"
HOST = np.arange(12, dtype=np.float32).reshape(3, 4)

spec = importlib.util.spec_from_file_location("stand_in_for_cupy", STAND_IN / "cupy" / "__init__.py")
cp = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cp)
counting, stand_in = cp.stand_in.counting, cp.stand_in


@pytest.fixture
def x():
    return cp.asarray(HOST)


def do(code, x, **names):
    """Run a line of code that knows np, cp, an array of the host and x, one of the device."""
    exec(compile(code, __file__, "exec"), {"np": np, "cp": cp, "HOST": HOST.copy(), "x": x, **names})


def assert_holds(array, expected):
    assert type(array) is cp.ndarray
    np.testing.assert_array_equal(array.get(), expected)


# Arrays of the host and of the device do not mix.

MISTAKES = {
    r"\.get\(\)": [
        "np.sum(x)", "np.concatenate([x, x])", "np.asarray(x)", "np.array([x, x])", "np.float32(x[0, 0])", "HOST + x",
        "x + HOST", "HOST.T @ x", "x @ HOST.T", "x == HOST", "x + np.array(1.0)", "x * [1, 2, 3, 4]", "x += HOST",
        "x[...] = HOST", "x[...] = np.array(1.0)", "x[0] = [1] * 4", "HOST[...] = x", "HOST[x.astype(int)]",
        "cp.add(x, HOST)", "cp.add(x, x, out=HOST)", "cp.exp(HOST)", "cp.sum([1, 2])", "cp.where(x > 0, x, [1] * 4)",
        "cp.vdot(x[0], [1] * 4)", "cp.einsum('i,i', x[0], [1] * 4)", "cp.concatenate([x, HOST])",
        "cp.stack([x.sum(), 1.0])", "cp.empty_like(HOST)", "x.clip(0, HOST)"],
    "ufunc": ["np.exp(x)", "np.add(HOST, x)", "HOST += x"],
    "upload": ["x[np.array([0, 1])]", "x[HOST > 3]", "x[[0, 1]]", "x[np.array([0, 1])] = x[:2]"],
    "bytes-like": ["memoryview(x)"],
    "unhashable": ["hash(x)"],
    "Unsupported dtype": ["cp.asarray(['text'])"],
}


@pytest.mark.parametrize(("mistake", "message"), [(code, text) for text, codes in MISTAKES.items() for code in codes])
def test_the_host_and_the_device_do_not_mix(x, mistake, message):
    with pytest.raises((TypeError, ValueError), match=message):
        do(mistake, x)


def test_scalars_mix_with_the_device_and_keep_its_dtype(x):
    for scalar in (2, 2.0, np.float32(2)):
        for result, expected in ((x * scalar, HOST * 2), (scalar - x, 2 - HOST), (x > scalar, HOST > 2),
                                 (cp.maximum(x, scalar), np.maximum(HOST, 2)),
                                 (cp.where(x > 2, scalar, x), np.where(HOST > 2, 2, HOST))):
            assert_holds(result, expected)
            assert result.dtype == expected.dtype
    x[0], x[1, 2] = np.float32(3), 5
    assert x.get()[0].tolist() == [3] * 4 and x.get()[1, 2] == 5


# CuPy's names and keywords, and no others.


@pytest.mark.parametrize("code", ["cp.fft", "cp.cuda.Stream", "cp.cuda.runtime.getDevices", "cp.lib.recfunctions",
                                  "cp.lib.stride_tricks.broadcast_to", "x.ptp"])
def test_a_name_that_is_not_in_the_manifest_is_an_error_that_says_what_to_do(x, code):
    name = re.sub(r"^x", "cupy.ndarray", re.sub(r"^cp", "cupy", code))
    with pytest.raises(AttributeError, match=rf"not know {name}: .* python tests/make_cupy_manifest.py {name} adds it"):
        do(code, x)


def test_a_name_that_cupy_lacks_and_one_that_only_the_manifest_has_are_other_errors(x, monkeypatch):
    with pytest.raises(AttributeError, match=r"^CuPy 14\S+ has no cupy.errstate$"):
        do("cp.errstate", x)
    for code, path in (("cp.scatter", "cupy"), ("x.scatter", "cupy.ndarray")):
        monkeypatch.setitem(stand_in.MANIFEST[path], "scatter", ["function", None])
        with pytest.raises(NotImplementedError, match=f"stand-in has no {path}.scatter, which CuPy has"):
            do(code, x)


@pytest.mark.parametrize(("code", "keyword"), [
    ("cp.add(x, x, where=x > 0)", "where"), ("cp.exp(x, order='C')", "order"), ("cp.max(x, initial=0)", "initial"),
    ("cp.tensordot(x, x, out=x)", "out"), ("cp.einsum('ij,kj->ik', x, x, out=x)", "out"), ("x.max(dtype=int)", "dtype"),
    ("x.copy(subok=True)", "subok"), ("x.sum(where=x > 0)", "where"), ("cp.zeros(3, like=x)", "like"),
    ("cp.lib.stride_tricks.as_strided(x, (2,), (4,), writeable=False)", "writeable")])
def test_a_keyword_that_cupy_lacks_is_an_error_that_says_so(x, code, keyword):
    with pytest.raises(TypeError, match=rf"^CuPy 14\S+ cupy\.\S+\(\) got an unexpected keyword argument '{keyword}'"):
        do(code, x)


def test_the_stand_in_defines_nothing_that_cupy_lacks_and_takes_its_parameters():
    for path, owner in (("cupy", cp), ("cupy.ndarray", cp.ndarray), ("cupy.cuda", cp.cuda),
                        ("cupy.cuda.runtime", cp.cuda.runtime), ("cupy.cuda.Device", cp.cuda.Device),
                        ("cupy.cuda.MemoryPool", type(cp.get_default_memory_pool()))):
        for name, value in vars(owner).items():
            if name.startswith("_") or name == "stand_in":
                continue
            _, parameters = stand_in.require(path, name)
            if parameters is not None and (inspect.isfunction(value) or name == "ElementwiseKernel"):
                ours = [p for p in inspect.signature(value).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
                theirs = inspect.signature(stand_in.signature(path, name)).parameters
                assert [p.name for p in ours] == list(theirs)[: len(ours)], f"{path}.{name}"


def test_what_the_package_and_the_lessons_take_of_cupy_is_in_the_manifest():
    files = [*ROOT.glob("vae_np/**/*.py"), *ROOT.glob("lessons/**/*.py")]
    used = {name for path in files for name in re.findall(r"\bxp\.([a-z]\w*)", path.read_text(encoding="utf-8"))}
    assert len(used) > 20 and {name for name in used if stand_in.MANIFEST["cupy"].get(name) is None} == set()


# Views and results.


@pytest.mark.parametrize("view", [
    "a[1:, ::2]", "a[1]", "a[1, 2, ...]", "a[::-1]", "a[:, None]", "a.reshape(4, 3)", "a.ravel()", "a.transpose(1, 0)",
    "a.swapaxes(0, 1)", "a[1:][:, 1:].T[0]", "xp.lib.stride_tricks.as_strided(a, (2, 2), (16, 4))"])
def test_views_write_through(x, view):
    host = HOST.copy()
    for xp, a in ((cp, x), (np, host)):
        do(f"v = {view}; v += 100; v[...] = v * 2", x, xp=xp, a=a)
    assert not np.array_equal(host, HOST)
    assert_holds(x, host)


def test_an_output_is_itself_the_result(x):
    out, product, before = cp.empty_like(x), cp.empty((3, 3), "float32"), x
    assert cp.add(x, 1, out=out) is out and cp.matmul(x, x.T, out=product) is product
    assert_holds(out, HOST + 1)
    assert_holds(product, HOST @ HOST.T)
    x -= 1
    assert x is before
    x @= cp.ones((4, 4))
    assert x is not before, "CuPy has no __imatmul__"


def test_attributes_and_results_of_no_axes(x):
    assert (x.shape, x.dtype, x.ndim, x.size, x.strides, x.nbytes) == ((3, 4), np.float32, 2, 12, (16, 4), 48)
    for result in (x.sum(), cp.vdot(x, x), x[1, 2], x.max(), cp.sqrt(x[0, 0])):
        assert type(result) is cp.ndarray and result.shape == ()
    assert [row.shape for row in x] == [(4,)] * 3 and len(x) == 3 and cp.float32 is np.float32
    number = x[1, 2]
    number += 1
    assert float(x[1, 2]) == HOST[1, 2] + 1


def test_new_memory_is_full_of_nonsense():
    assert all(np.isnan(made.get()).all() for made in (cp.empty((2, 3), "float32"), cp.empty_like(cp.zeros(3))))
    assert all(cp.empty(3, dtype).get().min() > 100 for dtype in ("int32", "uint8", "int64"))


# What is counted.


@pytest.mark.parametrize("code", [
    "x.get()", "cp.asnumpy(x)", "float(x[0, 0])", "int(x[0, 0])", "1 if x.sum() > 3 else 0", "max(x[0, 0], x[0, 1])",
    "x[0, 0].item()", "x.tolist()", "str(x)", "repr(x)", "f'{x[0, 1]:.3f}'", "x.__reduce__()", "x[x > 3]",
    "cp.where(x)", "x.nonzero()", "cp.cuda.Device().synchronize()"])
def test_waits_are_counted_with_their_place(x, code):
    with counting() as counts:
        do(code, x)
    assert (counts.waits, counts.uploads) == (1, 0)
    assert counts.wait_places == [f"{__file__}:1"]


def test_uploads_are_counted_and_computing_is_not(x):
    with counting() as counts:
        y = cp.asarray(HOST)
        cp.asarray([1.0, 2.0])
    assert (counts.waits, counts.uploads) == (0, 2)
    with counting() as counts:
        assert cp.asarray(y) is y and cp.asarray(y, "float64") is not y
        y += x @ x.T @ y
        y[1:] = cp.zeros((2, 4))
        y[y > 3] = 0
        cp.concatenate([x, cp.where(x > 0, x, y)]).sum(axis=0).astype("float64")
        for row in y:
            row *= 2
    assert (counts.waits, counts.uploads, counts.wait_places) == (0, 0, [])


def test_all_threads_count(x):
    with counting() as counts:
        threads = [threading.Thread(target=lambda: [float(x[0, 0]) for _ in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts.waits == 800


def test_what_comes_and_goes_is_a_copy():
    host = HOST.copy()
    x = cp.asarray(host)
    host[...] = 0
    x.get()[...] = 0
    for made in (copy.deepcopy(x), x.copy()):
        made += 1
    assert_holds(x, HOST)


# Memory, and a device that is not well.


@pytest.fixture
def pool():
    pool = cp.get_default_memory_pool()
    yield pool
    pool.set_limit(size=0)


def test_memory_is_counted_by_owner_and_freed(pool):
    before, free = pool.used_bytes(), cp.cuda.runtime.memGetInfo()[0]
    x = cp.zeros((1 << 18,), "float32")
    view = x[10:].reshape(2, -1)
    assert pool.used_bytes() - before == free - cp.cuda.runtime.memGetInfo()[0] == 1 << 20
    del x
    assert pool.used_bytes() - before == 1 << 20, "the view keeps it"
    del view
    assert pool.used_bytes() == before


@pytest.mark.parametrize("code", ["cp.zeros((1 << 19,))", "cp.empty((1 << 19,))", "cp.asarray(np.zeros(1 << 19))",
                                  "cp.concatenate([x] * (1 << 15))"])
def test_out_of_memory(pool, x, code):
    pool.set_limit(size=pool.used_bytes() + (1 << 20))
    assert cp.cuda.runtime.memGetInfo()[0] == 1 << 20
    with pytest.raises(MemoryError, match=r"^Out of memory allocating [\d,]+ bytes"):
        do(code, x)
    pool.set_limit(size=0)
    do(code, x)


@pytest.mark.parametrize(("fault", "attempt", "error", "message", "driver"), [
    ("no_driver", "cp.zeros(3)", RuntimeError, "cudaErrorInsufficientDriver", 0),
    ("old_driver", "cp.asarray(HOST)", RuntimeError, "cudaErrorInsufficientDriver", 11040),
    ("no_gpu", "cp.zeros(3)", RuntimeError, "cudaErrorNoDevice", 12090),
    ("no_nvrtc", "cp.arange(3)", RuntimeError, "libnvrtc", 12090),
    ("no_nvrtc", "cp.zeros(3) + 1", RuntimeError, "libnvrtc", 12090),
    ("no_cublas", "cp.ones((2, 2)) @ cp.ones((2, 2))", ImportError, "libcublas", 12090)])
def test_faults(monkeypatch, x, fault, attempt, error, message, driver):
    do(attempt, x)
    monkeypatch.setattr(stand_in, "fault", fault)
    with pytest.raises(error, match=message):
        do(attempt, x)
    runtime = cp.cuda.runtime
    assert (runtime.driverGetVersion(), runtime.runtimeGetVersion()) == (driver, 12090)
    if fault in ("no_nvrtc", "no_cublas"):
        assert runtime.getDeviceCount() == 1 and cp.zeros(3).shape == (3,)
    else:
        with pytest.raises(runtime.CUDARuntimeError, match=message):
            runtime.getDeviceCount()


# Kernels.


def kernel(*args, **kwargs):
    if sys.modules["stand_in_for_cupy._kernel"].compiler() is None:
        pytest.skip("the stand-in runs kernels with a C++ compiler, and there is none here")
    return cp.ElementwiseKernel(*args, **kwargs)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_a_kernel_computes_on_strided_inputs_and_outputs(dtype, tolerance):
    a, b, c = np.random.default_rng(0).standard_normal((3, 6, 8)).astype(dtype)
    compute = kernel("T x, T y, raw T r, int32 h, T rate", "T z, int64 w",
                     "const T s = exp(-abs(x)) * twice(y); z = max(s, r[i % N]) + rate * h; w = i;",
                     preamble="constexpr int N = 10;\ntemplate <class A> A twice(A v) { return 2 * v; }")
    inputs = cp.asarray(a)[::2, 1::2], cp.asarray(b.T).T[1::2, ::-2], cp.asarray(c).T, 3, 0.5
    out, places = cp.zeros((4, 6), dtype).T[::2], cp.empty((3, 4), "int64")
    compute(*inputs, out, places)
    raw = c.T.ravel()[np.arange(12) % 10].reshape(3, 4)
    expected = np.maximum(np.exp(-np.abs(a[::2, 1::2])) * 2 * b[1::2, ::-2], raw) + 1.5
    np.testing.assert_allclose(out.get(), expected, rtol=tolerance)
    assert_holds(places, np.arange(12).reshape(3, 4))
    made, _ = compute(*inputs)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made.get(), out.get())


def test_a_kernel_broadcasts_inputs_and_may_write_to_them(x):
    add = kernel("T x, T y", "T z", "z = x + y", "add")
    assert_holds(add(x[:, :1], x[0]), HOST[:, :1] + HOST[0])
    assert_holds(add(x, 2.5), HOST + 2.5)
    assert add(x, x, x) is x
    assert_holds(x, 2 * HOST)
    with pytest.raises(ValueError, match="'z' has shape"):
        add(x, x, x[:1])
    with pytest.raises(ValueError, match="broadcast"):
        add(x, x, cp.broadcast_to(cp.zeros(4, "float32"), (3, 4)))


def test_raw_arrays_take_a_size_and_other_arrays_do_not(x):
    reverse = kernel("raw T x", "raw T y", "y[i] = x[11 - i]")
    y = reverse(x.T, cp.empty_like(x), size=12)
    assert_holds(reverse(x, y, size=0), HOST.T.ravel()[::-1].reshape(3, 4))
    for wrong in (lambda: reverse(x, y), lambda: kernel("T x", "T y", "y = x")(x, size=12),
                  lambda: kernel("T x", "raw T y", "y[i] = x")(x)):
        with pytest.raises(ValueError, match=r"size=|raw"):
            wrong()


@pytest.mark.parametrize("index", [-1, 12, 10**12])
def test_an_index_outside_is_an_error(x, index):
    read = kernel("raw T x, int64 k", "T y", "y = i == 5 ? x[k] : x[i]", "read")
    write = kernel("T x, int64 k", "raw T y", "if (i == 5) y[k] = x;", "write")
    assert_holds(read(x, 11, cp.empty(12, "float32")), [0, 1, 2, 3, 4, 11, 6, 7, 8, 9, 10, 11])
    for run, problem in ((read, "kernel read: 'x' has 12"), (write, "kernel write: 'y' has 12")):
        with pytest.raises(IndexError, match=f"{problem} numbers, and index {index} is outside"):
            run(x, index, cp.empty(12, "float32"))


@pytest.mark.parametrize("body", ["y[i / 2] = x", "y[i / 2] += x", "y[0] = x", "y[3] *= x + 2"])
def test_two_iterations_that_write_to_one_place_show(x, body):
    with pytest.raises(RuntimeError, match=r"'y' is written to at index \d+ by two iterations"):
        kernel("T x", "raw T y", body)(x, cp.ones(12, "float32"))


def test_numbers_must_be_aligned_to_their_size():
    memory, copy = cp.zeros(9, "float32"), kernel("raw T x", "T y", "y = x[i]", "copy")
    assert memory.data.ptr % 16 == 0 == memory[4:].data.ptr - memory.data.ptr - 16
    assert_holds(copy(memory[:8].view("complex128"), cp.empty(2, "complex128")), [0, 0])
    with pytest.raises(RuntimeError, match="kernel copy: 'x' is not aligned to its type, at index"):
        copy(memory[1:].view("complex128"), cp.empty(2, "complex128"))


def test_writing_often_to_ones_own_place_is_no_collision(x):
    y = cp.zeros(12, "float32")
    kernel("T x", "raw T y", "y[i] = 1; for (int k = 0; k < 3; k++) y[i] += x; if (i % 2) continue; y[i] = -1")(x, y)
    assert_holds(y, np.where(np.arange(12) % 2, 1 + 3 * HOST.ravel(), -1))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 100, 100_000])
def test_iterations_come_once_each_and_none_soon_after_the_one_before_it(size):
    turn = kernel("", "T y", "y = count++", preamble="static int count = 0;")(cp.empty(size)).get()
    assert sorted(turn - turn.min()) == list(range(size)), "the variable outlives the kernel"
    assert size <= 10 or (abs(np.diff(turn) - 1) > 1).all()


@pytest.mark.parametrize(("code", "error", "message"), [
    ("k(HOST, 1)", TypeError, "device"), ("k(x, 1, HOST)", TypeError, "device"), ("k(x)", TypeError, "takes 2 inputs"),
    ("k(x, 1, out=x)", TypeError, "out"), ("k(x, 1, cp.zeros((3, 4)))", TypeError, "float64"),
    ("k(x, cp.zeros(4, 'int64'))", TypeError, "int32"), ("k(x, 1.5)", TypeError, "int32"),
    ("k(x, 1 << 40)", OverflowError, None), ("k(1.0, 2)", TypeError, "no array tells"),
    ("kernel('T i', 'T y', 'y = i')", ValueError, "not a parameter"),
    ("kernel('wrong T x', 'T y', 'y = x')", ValueError, "not a parameter"),
    ("kernel('T x', 'T y', 'y = x', 'a name')", ValueError, "Invalid kernel name"),
    ("kernel('T x', 'T y', 'y = x; x = 1')(x)", RuntimeError, "does not compile"),
    ("kernel('raw T r', 'raw T y', 'r[0] = 1')(x, x, size=1)", RuntimeError, "does not compile"),
    ("kernel('T x', 'T y', 'y = undeclared')(x)", RuntimeError, "does not compile")])
def test_wrong_kernels_and_calls(x, code, error, message):
    k = kernel("T x, int32 h", "T y", "y = x + h")
    with pytest.raises(error, match=message):
        do(code, x, k=k, kernel=kernel)


def test_without_a_compiler_a_kernel_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"stand-in for CuPy needs a C\+\+ compiler"):
        cp.ElementwiseKernel("T x", "T y", "y = x")


def test_processes_compile_the_same_kernel_at_once(tmp_path):
    kernel("T x", "T y", "y = x")
    code = "import cupy; print(float(cupy.ElementwiseKernel('T x', 'T y', 'y = x + 1', 'same')(cupy.zeros(3)).sum()))"
    environment = os.environ | {"PYTHONPATH": str(STAND_IN), "TMPDIR": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
                 for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["3.0"] * 3
    assert len(list(tmp_path.glob("*/*"))) == 1, "one library, and nothing unfinished"
