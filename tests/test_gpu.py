"""fast/gpu.py: each kernel against array code and through NVIDIA's compiler; waits, launches, where images are.

Without a GPU: VAE_BACKEND=cupy PYTHONPATH=tests/stand_in pytest runs kernels on the CPU, and all other tests through
CuPy as well. NVIDIA's compiler needs no GPU, only `pip install nvidia-cuda-nvrtc-cu12`.
"""

import ctypes
import importlib.util
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device, xp
from vae_np.errors import TrainingError
from vae_np.fast import arrays, gpu, workers
from vae_np.fast.arrays import Workspace
from vae_np.fast.gpu import ImagesOnDevice, kept_on_device
from vae_np.run.trainer import Trainer
from vae_np.train import Settings, batches, to_float

on_cupy = pytest.mark.skipif(backend.NAME != "cupy", reason="needs VAE_BACKEND=cupy")
stand_in = getattr(xp, "stand_in", None)
counted = pytest.mark.skipif(stand_in is None, reason="only the stand-in counts")


# Arguments for each kernel, at sizes that differ wherever they can; d draws a random array.
CALLS = {
    "leaky": [lambda d: (d(5, 3, 4, 6), 0.3)],
    "leaky_gradient": [lambda d: (d(7, 5), d(7, 5), 0.2)],
    "unfold": [lambda d: (d(2, 6, 8, 3), 4, 2, 1, Workspace()), lambda d: (d(2, 5, 4, 3), 3, 1, 0, Workspace()),
               lambda d: (d(2, 5, 7, 2), 3, 2, 2, Workspace()), lambda d: (d(2, 6, 8, 4), 4, 2, 1, Workspace()),
               lambda d: (d(2, 6, 8, 8)[..., ::2], 4, 2, 1, Workspace()),
               # No pixel begins at a multiple of 16 bytes.
               lambda d: (d(2 * 6 * 8 * 4 + 1)[1:].reshape(2, 6, 8, 4), 4, 2, 1, Workspace())],
    "fold": [lambda d: (d(2 * 3 * 4, 16 * 3), (2, 6, 8, 3), 4, 2, 1, Workspace()),
             lambda d: (d(2 * 3 * 2, 9 * 3), (2, 5, 4, 3), 3, 1, 0, Workspace()),
             lambda d: (d(2 * 3 * 4, 9 * 2), (2, 7, 9, 2), 3, 2, 0, Workspace()),
             lambda d: (d(2 * 2 * 2, 4 * 3), (2, 6, 6, 3), 2, 3, 0, Workspace())],  # no patch covers some pixels
    "cross_entropy": [lambda d: (3 * d(2, 4, 6, 3), d(2, 4, 6, 3), 0.25)],
    "squared_error": [lambda d: (3 * d(2, 4, 6, 3), d(2, 4, 6, 3))],
    "adam_step": [lambda d: (d(50), 9 * d(50), d(50), abs(d(50)), 0.9, 0.999, 1e-3, 0.2, 1.5)],
}  # fmt: skip


def outcome(function, call, dtype):
    """What a function returns and what its array arguments then hold, as NumPy arrays."""
    rng = np.random.default_rng(0)
    arguments = call(lambda *shape: to_device(rng.standard_normal(shape).astype(dtype)))
    result = function(*arguments)
    results = result if isinstance(result, tuple) else (result,)
    return [to_cpu(array) for array in (*results, *arguments) if isinstance(array, xp.ndarray)]


def test_every_kernel_has_a_call_and_takes_the_place_of_the_function_that_its_docstring_names():
    functions = {name for name, function in vars(gpu).items()
                 if inspect.isfunction(function) and function.__module__ == gpu.__name__}
    assert functions == CALLS.keys() | {"on_gpu", "kept_on_device", "free_memory", "synchronize"}
    for name in CALLS:
        assert getattr(gpu, name).__doc__.startswith(f"arrays.{name}"), name
        # The same parameters in the same order, with the same defaults: one may stand for the other.
        function = inspect.unwrap(getattr(arrays, name))
        assert inspect.signature(getattr(gpu, name)) == inspect.signature(function), name


@on_cupy
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_computes_what_the_array_code_does(name, dtype, tolerance):
    function = getattr(arrays, name)
    for call in CALLS[name]:
        by_kernel, by_arrays = outcome(function, call, dtype), outcome(function.__wrapped__, call, dtype)
        for one, other in zip(by_kernel, by_arrays, strict=True):
            assert (one.shape, one.dtype) == (other.shape, np.dtype(dtype))
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def source(c_type, inputs, outputs, operation, name, preamble=""):
    """A whole program for NVRTC, of the kind that cupy.ElementwiseKernel makes of its arguments."""
    texts = [f"const {text}" for text in inputs.split(", ")] + outputs.split(", ")
    each = [re.sub(r"T (\w+)$", r"T &\1 = _\1[i];", text) for text in texts if "raw" not in text]
    parameters = [text.replace("raw T ", "T* ") if "raw" in text else text.replace("T ", "T* _") for text in texts]
    return (f'typedef {c_type} T;\n{preamble}\n'
            f'extern "C" __global__ void {name}({", ".join(parameters)}, int size) {{\n'
            "for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += blockDim.x * gridDim.x) {\n"
            + "\n".join(each) + operation + ";\n}\n}\n")


@pytest.mark.parametrize("c_type", ["float", "double"])
def test_nvidias_compiler_accepts_every_kernel_without_a_warning(c_type, monkeypatch):
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    found = [path for folder in folders for path in Path(folder).rglob("*nvrtc*")
             if re.fullmatch(r"libnvrtc\.so\.\d+|nvrtc64_\d+_\d+\.dll", path.name)]
    if not found:
        pytest.skip("pip install nvidia-cuda-nvrtc-cu12 to compile the kernels")
    nvrtc, made = ctypes.CDLL(str(found[0])), {}

    def kernel(*parts, **more):
        made[source(c_type, *parts, **more)] = parts[3]
        return lambda *arguments: (np.ones(3), np.ones(3))

    def compiles(text):
        program, log = ctypes.c_void_p(), ctypes.create_string_buffer(1 << 20)
        assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
        status = nvrtc.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_80"))
        nvrtc.nvrtcGetProgramLog(program, log)
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        return status == 0, log.value.decode().strip("\n ")

    monkeypatch.setattr(gpu, "compiled", gpu.compiled.__wrapped__)  # which keeps nothing
    monkeypatch.setattr(gpu, "xp", SimpleNamespace(ElementwiseKernel=kernel, empty=np.empty))
    monkeypatch.setattr(arrays, "xp", np)  # of the workspace

    class OnDevice(np.ndarray):
        data = SimpleNamespace(ptr=0)

    for name, calls in CALLS.items():
        for call in calls:
            getattr(gpu, name)(*call(lambda *shape: np.ones(shape).view(OnDevice)))
    assert set(made.values()) == set(CALLS)
    for text in made:
        assert compiles(text) == (True, ""), text
        assert not compiles(text.replace("T", "Tea", 1))[0], "a compiler that accepts anything would prove nothing"


def trainer_for(dataset, **settings):
    settings = Settings(**{"epochs": 2, "batch_size": 4, "warmup_steps": 2, **settings})
    return Trainer(VAE(16, (4, 6), 5), dataset.split("train"), dataset.split("validation"), settings)


@counted
@pytest.mark.parametrize(("shard", "settings", "launches"), [  # kernels and products: write a smaller number if you can
    (512, {"likelihood": "bernoulli"}, 121), (512, {"likelihood": "gaussian"}, 130), (512, {"free_bits": 0.02}, 184),
    (512, {"likelihood": "calibrated"}, 143), (4, {"likelihood": "bernoulli"}, 247), (4, {"free_bits": 0.02}, 358),
    (4, {"likelihood": "gaussian"}, 265), (4, {"likelihood": "calibrated"}, 278)], ids=str)
def test_no_step_waits_for_the_device_or_makes_more_launches_than_before(ramps, shard, settings, launches, monkeypatch):
    monkeypatch.setattr(workers, "SHARD_SIZE", shard)  # of a batch of eight
    trainer = trainer_for(ramps, **settings)
    x = to_float(trainer.images[np.arange(8)])
    trainer.step(x)  # compiles
    with stand_in.counting() as counts:
        trainer.step(x)
    assert counts.waits == 0, counts.wait_places
    assert counts.uploads == 1, "the noise"
    assert 0 < counts.launches <= launches


@counted
def test_an_epoch_waits_once_for_the_losses_of_ten_steps(ramps, monkeypatch):
    trainer = trainer_for(ramps, batch_size=1)
    monkeypatch.setattr("vae_np.run.trainer.evaluate", lambda *args: {})
    monkeypatch.setattr(Trainer, "_row", lambda *args: {})
    monkeypatch.setattr(Trainer, "look", lambda self: None)
    with stand_in.counting() as counts:
        trainer.train_epoch()
    assert counts.waits == 3, counts.wait_places
    assert counts.uploads == 3 * 24, "the noise of each step, which images it takes, and which of them are mirrored"


@on_cupy
def test_images_are_kept_on_the_device_where_they_fit_and_training_gives_the_same_bits_anyway(ramps, monkeypatch):
    images, values, order = ramps.split("train"), [], np.random.default_rng(0).permutation(24)
    on_device = kept_on_device(images)
    assert isinstance(on_device[order], xp.ndarray) and on_device[order].dtype == np.uint8
    pairs = [*zip(batches(on_device, 7, order), batches(images, 7, order), strict=True)]
    assert [(len(one), one.dtype) for one, _ in pairs] == [(7, "float32")] * 3 + [(3, "float32")]
    for one, other in pairs:
        np.testing.assert_array_equal(to_cpu(one), to_cpu(other))
    for too_few in (0, 1):
        monkeypatch.setattr(gpu, "free_memory", lambda too_few=too_few: 2 * images.nbytes - too_few)
        trainer = trainer_for(ramps)
        assert isinstance(trainer.images, ImagesOnDevice) is (not too_few)
        trainer.train_epoch()
        values.append(to_cpu(trainer.model.values))
    np.testing.assert_array_equal(*values)


@on_cupy
def test_too_little_memory_is_one_line_that_names_a_smaller_batch(ramps):
    trainer = trainer_for(ramps)
    x = to_device(np.zeros((4096, 16, 16, 3), np.float32))
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()  # which would be used again, whatever the limit
    pool.set_limit(size=pool.used_bytes() + x.nbytes)
    try:
        with pytest.raises(TrainingError, match=r"not enough memory for a step on 4096 images; try batches of 2048$"):
            trainer.step(x)
    finally:
        pool.set_limit(size=0)
