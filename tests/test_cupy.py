"""What only VAE_BACKEND=cupy can show: the same numbers as NumPy's, no waiting inside a step, where the images are.

Without a GPU: VAE_BACKEND=cupy PYTHONPATH=tests/stand_in pytest. The other tests then run through CuPy as well.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
from conftest import write_dataset

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device, xp
from vae_np.disk.dataset import batches, kept_on_device, to_float
from vae_np.errors import TrainingError
from vae_np.losses import LIKELIHOODS
from vae_np.run import trainer as train
from vae_np.run.trainer import Settings, Trainer

pytestmark = pytest.mark.skipif(backend.NAME != "cupy", reason="needs VAE_BACKEND=cupy")
stand_in = getattr(xp, "stand_in", None)
counted = pytest.mark.skipif(stand_in is None, reason="only the stand-in counts")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The figures of tests/parity.py from NumPy, in a process of its own, and from here."""
    path = tmp_path_factory.mktemp("parity") / "numpy.npz"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "VAE_BACKEND": "numpy", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, root / "tests" / "parity.py", path], env=environment, check=True, timeout=120)
    with np.load(path) as file:
        return dict(file), parity.figures()


def compare(both, prefix, tolerance):
    """The largest difference of what begins with prefix, beside the largest number of each array."""
    by_numpy, by_cupy = both
    names = [name for name in by_numpy if name.startswith(prefix)]
    assert names and by_cupy.keys() == by_numpy.keys()
    for name in names:
        one, other = by_numpy[name], by_cupy[name]
        assert one.dtype == other.dtype
        assert np.abs(one - other).max() <= tolerance * np.abs(one).max(), name


def test_outputs_are_numpys_to_1e_5(both):
    compare(both, "output", 1e-5)


def test_losses_and_gradients_are_numpys_to_1e_4(both):
    compare(both, "loss", 1e-4)
    compare(both, "gradient", 1e-4)


def test_twenty_steps_of_training_follow_numpys_curve_to_1e_3(both):
    compare(both, "curve", 1e-3)


def trainer_for(dataset, **settings):
    defaults = {"epochs": 2, "batch_size": 4, "warmup_steps": 2}
    return Trainer(VAE(16, channels=(4, 6), latent_dim=5), dataset, Settings(**{**defaults, **settings}))


@counted
@pytest.mark.parametrize("settings", [*({"likelihood": name} for name in LIKELIHOODS), {"free_bits": 0.02}], ids=str)
def test_no_step_waits_for_the_device(ramps, settings):
    trainer = trainer_for(ramps, **settings)
    x = to_float(trainer.images[:8])
    trainer.train_step(x)  # compiles
    with stand_in.counting() as counts:
        for _ in range(3):
            trainer.train_step(x)
    assert counts.waits == 0
    assert counts.uploads == 3, "the noise of each step"


@counted
def test_an_epoch_waits_once_for_the_losses_of_ten_steps(ramps, monkeypatch):
    trainer = trainer_for(ramps, batch_size=1)
    monkeypatch.setattr(Trainer, "_row", lambda *args: {})
    monkeypatch.setattr(Trainer, "look", lambda self: None)
    with stand_in.counting() as counts:
        trainer.train_epoch()
    assert counts.waits == 3, "24 steps"
    assert counts.uploads == 2 * 24, "the noise of each step, and which images it takes"


def test_training_images_are_kept_on_the_device_where_they_fit(ramps, monkeypatch):
    images = ramps.split("train")
    order = np.random.default_rng(0).permutation(len(images))
    on_device = kept_on_device(images)
    assert isinstance(on_device, xp.ndarray) and on_device.dtype == np.uint8
    monkeypatch.setattr("vae_np.disk.dataset.free_memory", lambda: 2 * images.nbytes - 1)
    on_host = kept_on_device(images)
    assert on_host is images
    pairs = [*zip(batches(on_device, 7, order), batches(on_host, 7, order), strict=True)]
    assert [len(one) for one, _ in pairs] == [7, 7, 7, 3]
    for one, other in pairs:
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(to_cpu(one), to_cpu(other))


def test_training_gives_the_same_bits_wherever_its_images_are(ramps, monkeypatch):
    one = trainer_for(ramps)
    one.train_epoch()
    monkeypatch.setattr(train, "kept_on_device", lambda images: images)
    other = trainer_for(ramps)
    other.train_epoch()
    np.testing.assert_array_equal(to_cpu(one.model.values), to_cpu(other.model.values))


def test_too_little_memory_is_one_line_that_names_a_smaller_batch(ramps):
    trainer = trainer_for(ramps)
    x = to_device(np.zeros((4096, 16, 16, 3), np.float32))
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()  # which would be used again, whatever the limit
    pool.set_limit(size=pool.used_bytes() + x.nbytes)
    try:
        with pytest.raises(TrainingError, match=r"not enough memory for a step on 4096 images; try batches of 2048$"):
            trainer.train_step(x)
    finally:
        pool.set_limit(size=0)


def test_a_checkpoint_is_numpys_own(tmp_path):
    """It is written and read on the host, so that either backend goes on with the other's."""
    dataset = write_dataset(tmp_path / "ramps")
    trainer = trainer_for(dataset)
    trainer.train_epoch()
    trainer.save(tmp_path / "checkpoint.npz")
    code = ("import sys, numpy as np; from vae_np.run.checkpoint import load_model; from vae_np.backend import NAME\n"
            "model, _, _ = load_model(sys.argv[1]); print(NAME); np.save(sys.argv[2], model.values)")
    environment = {**os.environ, "VAE_BACKEND": "numpy"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "checkpoint.npz", tmp_path / "values.npy"], env=environment,
                   check=True, timeout=60, cwd=Path(__file__).parent.parent)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), to_cpu(trainer.model.values))
