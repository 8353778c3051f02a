"""Fixtures that several tests share: random generators, the two ways to compute, and small prepared datasets."""

import os
import signal

import numpy as np
import pytest

try:
    from data_tools.prepared import DatasetWriter
    from vae_np import backend
    from vae_np.disk.dataset import Dataset
except ImportError as error:  # a backend that is not there is one line
    if not str(error).startswith("VAE_BACKEND="):
        raise
    pytest.exit(str(error), returncode=4)

# Tests start programs in folders of their own, where a relative path would lead nowhere.
if "PYTHONPATH" in os.environ:
    folders = os.environ["PYTHONPATH"].split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, folders)))


# Shells have programs in the background ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["plain"] if backend.NAME == "plain" else ["plain", "fast"])
def way(request, monkeypatch):
    """Run a test on the core's own classes, and on those of fast/ in their place: on what is made inside the test."""
    if request.param == "plain":
        monkeypatch.setattr(backend, "FASTER", {})
    return request.param


@pytest.fixture
def both_ways(monkeypatch):
    """A function of a function: what this one returns on the core's own classes, and on those of fast/."""
    if not backend.FASTER:
        pytest.skip("compares the two ways, and under VAE_BACKEND=plain there is one")

    def compute(function):
        with monkeypatch.context() as patch:
            patch.setattr(backend, "FASTER", {})
            plain = function()
        return plain, function()

    return compute


def make_forgetful(layers):
    """Have layers keep no array, as if another thread had called each of them at once."""
    for layer in layers:
        class Forgetful(type(layer)):
            def __setattr__(self, name, value):
                super().__setattr__(name, None if isinstance(value, backend.xp.ndarray) else value)

        layer.__class__ = Forgetful


def write_dataset(folder, train=24, validation=8, test=8, size=16, seed=0):
    """A prepared dataset of smooth random pictures: enough for a model to have something to learn."""
    rng = np.random.default_rng(seed)
    count = train + validation + test
    ramp = np.linspace(0, 1, size)
    colours = rng.random((3, count, 1, 1, 3))
    pixels = colours[0] * ramp[:, None, None] + colours[1] * ramp[:, None] + colours[2] * (1 - ramp[:, None, None])
    attributes = np.stack([colours[0, :, 0, 0, 0] > 0.5, colours[1, :, 0, 0, 1] > 0.5], axis=1)
    with DatasetWriter(folder, count, size) as writer:
        images = np.load(writer.images_path, mmap_mode="r+")
        images[:] = np.rint(255 * np.clip(pixels / 2, 0, 1))
        images.flush()
        del images  # Windows does not rename a folder with a file that is still mapped
        writer.finish(source="ramps", crop="none", attributes=attributes, attribute_names=["Red", "Green"],
                      splits={"train": train, "validation": validation, "test": test},
                      file_names=[f"{i:06d}.png" for i in range(1, count + 1)])
    return Dataset(folder)


@pytest.fixture(scope="session")
def ramps(tmp_path_factory):
    """A small dataset that tests may read but not change."""
    return write_dataset(tmp_path_factory.mktemp("data") / "ramps")
