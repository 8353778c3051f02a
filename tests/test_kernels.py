"""The CUDA kernels: each against the array code whose place it takes, and through NVIDIA's compiler.

The comparison needs VAE_BACKEND=cupy, be it a GPU or the stand-in of tests/stand_in, which runs the kernels on the CPU.
The compiler needs no GPU, only `pip install nvidia-cuda-nvrtc-cu12`.
"""

import ctypes
import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vae_np import backend, conv, layers, losses, optim
from vae_np.backend import to_cpu, to_device
from vae_np.fast import gpu as kernels
from vae_np.fast import winograd

# One call for each kernel, at sizes that differ wherever they can: {name: (owner, arguments of function(draw))}. draw
# makes a random array; an argument that is written to stands in both lists of results.
CALLS = {
    "add_bias": (layers, lambda draw: (draw(5, 3, 4, 6), draw(6), 0.3)),
    "leaky_gradient": (layers, lambda draw: (draw(7, 5), draw(7, 5), 0.2)),
    "unfold": (conv, lambda draw: (draw(2, 6, 8, 3), 4, 2, 1, conv.Workspace())),
    "fold": (conv, lambda draw: (draw(2 * 3 * 4, 4 * 4 * 3), (2, 6, 8, 3), 4, 2, 1, conv.Workspace(), draw(3), 0.3)),
    "tiles_of": (winograd, lambda draw: (draw(3, 8, 12, 5), conv.Workspace())),
    "images_of": (winograd, lambda draw: (draw(9, 3 * 2 * 3, 4 * 5), (3, 8, 12, 5), conv.Workspace(), draw(5), 0.3)),
    "nine_of_four": (winograd, lambda draw: (winograd.quads_of(draw(3, 4, 6, 5)), draw(3, 3, 3, 2, 3, 5),
                                             conv.Workspace())),
    "four_of_nine": (winograd, lambda draw: (draw(3, 3, 3, 2, 3, 5), winograd.quads_of(draw(3, 4, 6, 5)),
                                             conv.Workspace(), draw(5), 0.3)),
    "cross_entropy": (losses, lambda draw: (3 * draw(2, 4, 6, 3), abs(draw(2, 4, 6, 3)), 0.25)),
    "adam_step": (optim, lambda draw: (draw(50), 1e3 * draw(50), draw(50), 0 * draw(50), 0.9, 0.999, 1e-3, 0.2, 1.5)),
}
# Other geometries, and backward passes, which add no bias.
VARIANTS = {
    "add_bias, no activation": ("add_bias", lambda draw: (draw(4, 6), draw(6))),
    "unfold, 3x3 at stride 1": ("unfold", lambda draw: (draw(2, 5, 4, 3), 3, 1, 0, conv.Workspace())),
    "unfold, 3x3 at stride 2, wide border": ("unfold", lambda draw: (draw(2, 5, 7, 2), 3, 2, 2, conv.Workspace())),
    "fold, no bias": ("fold", lambda draw: (draw(2 * 3 * 4, 4 * 4 * 3), (2, 6, 8, 3), 4, 2, 1, conv.Workspace())),
    "fold, 3x3 at stride 1": ("fold", lambda draw: (draw(2 * 3 * 2, 9 * 3), (2, 5, 4, 3), 3, 1, 0, conv.Workspace())),
    "fold, 3x3 at stride 2": ("fold", lambda draw: (draw(2 * 3 * 4, 9 * 2), (2, 7, 9, 2), 3, 2, 0, conv.Workspace())),
    "fold, pixels that no patch covers": ("fold", lambda draw: (draw(2 * 2 * 2, 4 * 3), (2, 6, 6, 3), 2, 3, 0,
                                                                conv.Workspace())),
    "images_of, no bias": ("images_of", lambda draw: (draw(9, 2 * 1 * 1, 4 * 3), (2, 4, 4, 3), conv.Workspace())),
    "nine_of_four, kernels": ("nine_of_four", lambda draw: (winograd.taps_of(draw(4, 4, 3, 5)),
                                                            draw(3, 3, 2, 2, 3, 5), conv.Workspace())),
    "four_of_nine, kernels": ("four_of_nine", lambda draw: (draw(3, 3, 2, 2, 3, 5), winograd.taps_of(draw(4, 4, 3, 5)),
                                                            conv.Workspace())),
}
ALL = {name: (name, call) for name, (_, call) in CALLS.items()} | VARIANTS


def test_every_kernel_has_a_call_here():
    functions = {name for name, function in vars(kernels).items()
                 if inspect.isfunction(function) and function.__module__ == kernels.__name__}
    assert functions - {"no_bias", "ones"} == set(CALLS)


def test_every_kernel_takes_the_place_of_the_function_that_its_docstring_names():
    for name, (owner, _) in CALLS.items():
        assert getattr(kernels, name).__doc__.startswith(f"{owner.__name__.split('.')[-1]}.{name}"), name
        definition = inspect.unwrap(getattr(owner, name))
        # The same parameters in the same order, with the same defaults: one may stand for the other.
        assert inspect.signature(getattr(kernels, name)) == inspect.signature(definition), name


def test_no_kernel_has_more_than_thirty_lines():
    for name, text in vars(kernels).items():
        if name.isupper():
            assert text.count("\n") <= 30, name


def outcome(function, call, dtype):
    """What a function returns and what its array arguments then hold, as NumPy arrays."""
    rng = np.random.default_rng(0)
    arguments = call(lambda *shape: to_device(rng.standard_normal(shape).astype(dtype)))
    result = function(*arguments)
    results = result if isinstance(result, tuple) else (result,)
    arrays = [array for array in (*results, *arguments) if hasattr(array, "shape")]
    return [to_cpu(array) for array in arrays]


@pytest.mark.skipif(backend.NAME != "cupy", reason="kernels take the place of array code under VAE_BACKEND=cupy only")
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("name", ALL)
def test_a_kernel_computes_what_the_array_code_does(name, dtype, tolerance):
    function, call = ALL[name]
    function = getattr(CALLS[function][0], function)
    by_kernel, by_arrays = outcome(function, call, dtype), outcome(function.__wrapped__, call, dtype)
    assert len(by_kernel) == len(by_arrays)
    for one, other in zip(by_kernel, by_arrays, strict=True):
        assert (one.shape, one.dtype) == (other.shape, np.dtype(dtype))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


class Recorder:
    """Stands in for cupy.ElementwiseKernel: keeps what it was made of, and returns arrays that nothing has filled."""

    def __init__(self, inputs, outputs, operation, name, preamble=""):
        self.inputs, self.outputs = inputs.split(", "), outputs.split(", ")
        self.operation, self.name, self.preamble = operation, name, preamble
        Recorder.made.append(self)

    def __call__(self, *arrays, size=None):
        return np.ones(3), np.ones(3)

    def source(self, c_type):
        """A whole program for NVRTC, of the kind that CuPy makes of it."""
        parameters, names = [], []
        for text in self.inputs + self.outputs:
            kind, name = text.rsplit(" ", 1)
            const = "const " if text in self.inputs else ""
            if kind == "int64":
                parameters.append(f"const long long {name}")
            elif kind.startswith("raw "):
                parameters.append(f"{const}T* {name}")
            else:
                parameters.append(f"{const}T* _{name}")
                names.append(f"{const}T &{name} = _{name}[i];")
        return (f"typedef {c_type} T;\n{self.preamble}\n"
                f'extern "C" __global__ void {self.name}({", ".join(parameters)}, int size) {{\n'
                "for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += blockDim.x * gridDim.x) {\n"
                + "\n".join(names) + self.operation + ";\n}\n}\n")


@pytest.fixture
def recorded(monkeypatch):
    """Every kernel as it is made by the calls above."""
    Recorder.made = []
    kernels.compiled.cache_clear()
    monkeypatch.setattr(kernels, "xp", SimpleNamespace(ElementwiseKernel=Recorder, empty=np.empty, zeros=np.zeros))
    monkeypatch.setattr(conv, "xp", np)  # of the workspace
    rng = np.random.default_rng(0)
    for name, call in ALL.values():
        getattr(kernels, name)(*call(lambda *shape: rng.standard_normal(shape)))
    yield Recorder.made
    kernels.compiled.cache_clear()
    kernels.no_bias.cache_clear()


def load_nvrtc():
    """NVIDIA's runtime compiler, from its wheel, or None."""
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in spec.submodule_search_locations if spec else ():
            for path in [*Path(folder).rglob("libnvrtc.so.*"), *Path(folder).rglob("nvrtc64_*.dll")]:
                if ".alt." not in path.name:
                    return ctypes.CDLL(str(path))
    return None


def compile_with(nvrtc, source, architecture):
    """Compile CUDA source for an architecture such as sm_80; return (succeeded, the compiler's words)."""
    program, length = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={architecture}".encode(), b"-std=c++17")
    status = nvrtc.nvrtcCompileProgram(program, 2, options)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(length))
    log = ctypes.create_string_buffer(length.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return status == 0, log.value.decode()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvidias_compiler_accepts_every_kernel_without_a_warning(recorded, architecture):
    nvrtc = load_nvrtc()
    if nvrtc is None:
        pytest.skip("pip install nvidia-cuda-nvrtc-cu12 to compile the kernels")
    assert {kernel.name for kernel in recorded} == set(CALLS)
    for kernel in recorded:
        for c_type in ("float", "double"):
            source = kernel.source(c_type)
            succeeded, log = compile_with(nvrtc, source, architecture)
            assert succeeded and not log.strip("\0\n "), f"{kernel.name}\n{log}\n{source}"
            broken, _ = compile_with(nvrtc, source.replace("T", "Tea", 1), architecture)
            assert not broken, "a compiler that accepts anything would prove nothing"
