"""Checkpoints come back as they were, are written whole, and nothing else is taken for one."""

import json

import numpy as np
import pytest

from vae_np import VAE
from vae_np.backend import to_cpu
from vae_np.disk.files import hold
from vae_np.errors import CheckpointError
from vae_np.run import checkpoint
from vae_np.run.checkpoint import PRIORS
from vae_np.run.trainer import Settings, Trainer
from vae_np.study.mixture import Mixture
from vae_np.study.priors import Gaussian, Standard
from vae_np.study.two_stage import TwoStage

SMALL = {"image_size": 16, "channels": [4, 6], "latent_dim": 5}


def test_what_is_saved_is_loaded(tmp_path, rng):
    path = tmp_path / "runs" / "checkpoint.npz"
    arrays = {"values": rng.standard_normal(7, dtype=np.float32), "progress": np.arange(4, dtype=np.uint8)}
    state = np.random.default_rng(3).bit_generator.state  # numbers of 128 bits
    checkpoint.save(path, arrays, {"random_state": state, "history": [{"loss": 0.1}], "name": "Zoë"})
    loaded, info = checkpoint.load(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    assert info == {"format_version": 3, "random_state": state, "history": [{"loss": 0.1}], "name": "Zoë"}


def save_training(path, values, model, leave_out=None):
    """A checkpoint that has everything a run's has, if not with much sense, but for what is left out."""
    arrays = {"values": values, "m": values, "v": values, "progress": np.zeros((0, 16, 16, 16, 3), np.uint8),
              "order": np.zeros(0, np.int64), "terms": np.zeros((0, 4))}
    arrays.pop(leave_out, None)
    info = {name: model if name == "model" else {} for name in checkpoint.INFO if name != leave_out}
    checkpoint.save(path, arrays, info)


def test_load_model(tmp_path, rng):
    model = VAE(**SMALL, seed=3)
    save_training(tmp_path / "a.npz", to_cpu(model.values), model.settings)
    loaded, _, _ = checkpoint.load_model(tmp_path / "a.npz")
    x = rng.random((2, 16, 16, 3), dtype=np.float32)
    np.testing.assert_array_equal(loaded.reconstruct(x), model.reconstruct(x))


def test_a_failure_while_saving_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, {"values": np.arange(3)}, {"step": 1})

    class Unwritable:
        def __array__(self, *args, **kwargs):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, {"first": np.arange(100_000), "values": Unwritable()}, {"step": 2})
    assert checkpoint.load(path)[1]["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.npz"]


def write(path, info):
    """A file with the right checksum and any info."""
    path.write_bytes(checkpoint.sealed({"values": np.arange(3), "info": np.array(info)}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: None, "there is no checkpoint"),
        (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
        (lambda path: path.write_text("<html>not found</html>"), "is damaged or no checkpoint"),
        (lambda path: np.savez(path, values=np.arange(3), info=np.array('{"format_version": 3}')), "is damaged"),
        (lambda path: path.write_bytes(checkpoint.sealed({"values": np.arange(3)})), "is damaged or no checkpoint"),
        (lambda path: write(path, {"a": 1}), "is damaged or no checkpoint"),  # an object, which would be unpickled
        (lambda path: write(path, "no json"), "is damaged or no checkpoint"),
        (lambda path: write(path, "[1]"), "is damaged or no checkpoint"),
        (lambda path: write(path, json.dumps({"format_version": 99})), "has format version 99, this program reads"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, damage, complaint):
    path = tmp_path / "checkpoint.npz"
    damage(path)
    with pytest.raises(CheckpointError, match=complaint) as error:
        checkpoint.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_altered_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, {"values": np.arange(50)}, {"step": 1})
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], whole[:-10], whole + b"0"]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]  # one bit, anywhere
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoint.load(path)


@pytest.mark.parametrize("model", [{"image_size": 60}, {"depth": 3}, {**SMALL, "latent_dim": 6}, None, [1]])
def test_a_checkpoint_of_something_else_is_no_model(tmp_path, model):
    save_training(tmp_path / "a.npz", to_cpu(VAE(**SMALL).values), model)
    with pytest.raises(CheckpointError, match="does not hold a model of this program"):
        checkpoint.load_model(tmp_path / "a.npz")


def test_a_broken_model_is_refused(tmp_path):
    values = to_cpu(VAE(**SMALL).values).copy()
    values[7] = np.nan
    save_training(tmp_path / "a.npz", values, SMALL)
    with pytest.raises(CheckpointError, match="some parameters are not finite"):
        checkpoint.load_model(tmp_path / "a.npz")


@pytest.mark.parametrize("name", checkpoint.ARRAYS + checkpoint.INFO)
def test_what_is_missing_is_named(tmp_path, name):
    save_training(tmp_path / "a.npz", to_cpu(VAE(**SMALL).values), SMALL, leave_out=name)
    with pytest.raises(CheckpointError, match=f"lacks {name}; it is no checkpoint of training"):
        checkpoint.load_model(tmp_path / "a.npz")


@pytest.fixture
def trained(tmp_path):
    """A model and the path of its checkpoint."""
    model = VAE(**SMALL, seed=3)
    save_training(tmp_path / "a.npz", to_cpu(model.values), model.settings)
    return model, tmp_path / "a.npz"


def fitted(name, seed=0):
    """A prior of this kind, fitted to clouds of 5 dimensions that are nowhere near N(0, I)."""
    rng = np.random.default_rng(seed)
    mu = 2 + 3 * rng.standard_normal((60, 5), dtype=np.float32)
    few = {"two-stage": {"epochs": 1}, "mixture": {"components": 3, "max_steps": 3}}.get(name, {})
    return PRIORS[name].fit(mu, np.zeros_like(mu), rng, **few)


@pytest.mark.parametrize("name", PRIORS)
def test_a_stored_prior_is_loaded_bit_for_bit_and_draws_the_same_faces(name, trained):
    model, path = trained
    before, info_before = checkpoint.load(path)
    model.prior = fitted(name)
    faces = model.sample(4, np.random.default_rng(1))
    checkpoint.store_prior(path, model)
    loaded, arrays, info = checkpoint.load_model(path)
    assert type(loaded.prior) is PRIORS[name]
    for key, array in model.prior.arrays.items():
        np.testing.assert_array_equal(loaded.prior.arrays[key], array)
    np.testing.assert_array_equal(loaded.sample(4, np.random.default_rng(1)), faces)
    z = np.ones((3, 5), np.float32)
    np.testing.assert_array_equal(loaded.prior.log_density(z), model.prior.log_density(z))
    for key, array in before.items():
        np.testing.assert_array_equal(arrays[key], array)
    assert info == {**info_before, "prior": name}
    other = VAE(**SMALL, seed=3).sample(4, np.random.default_rng(1))
    assert np.array_equal(faces, other) == (name == "standard")


def test_a_new_prior_takes_the_place_of_the_old_one(trained):
    model, path = trained
    names = set(checkpoint.load(path)[0])
    for name in ("two-stage", "mixture", "gaussian", "standard"):
        model.prior = fitted(name)
        checkpoint.store_prior(path, model)
        assert set(checkpoint.load(path)[0]) == names | {"prior_" + key for key in model.prior.arrays}
    assert type(checkpoint.load_model(path)[0].prior) is Standard


def test_without_a_prior_it_is_the_standard_one(trained):
    assert type(checkpoint.load_model(trained[1])[0].prior) is Standard


def test_a_prior_is_not_stored_beside_other_parameters(trained):
    model, path = trained
    other = VAE(**SMALL, seed=4)
    save_training(path, to_cpu(other.values), other.settings)
    content = path.read_bytes()
    model.prior = fitted("gaussian")
    with pytest.raises(CheckpointError, match="has changed since the prior was fitted to its codes; fit it again"):
        checkpoint.store_prior(path, model)
    assert path.read_bytes() == content


def test_a_prior_is_not_stored_while_a_training_is_at_work(trained):
    model, path = trained
    content, lock = path.read_bytes(), hold(path.parent)
    with pytest.raises(CheckpointError, match=r"a training is writing to .*; wait for it, then fit the prior"):
        checkpoint.store_prior(path, model)
    assert path.read_bytes() == content
    lock.release()
    checkpoint.store_prior(path, model)
    hold(path.parent).release()  # nothing is held any more


def test_training_on_drops_the_prior(ramps, tmp_path):
    path, settings = tmp_path / "a.npz", Settings(epochs=1, batch_size=8)
    trainer = Trainer(VAE(**SMALL), ramps, settings)
    trainer.save(path)
    trainer.model.prior = fitted("gaussian")
    checkpoint.store_prior(path, trainer.model)
    resumed = Trainer.resume(path, ramps, settings)
    resumed.train_epoch()
    resumed.save(path)
    assert type(checkpoint.load_model(path)[0].prior) is Standard


def change(name, array):
    def damage(arrays, info):
        arrays["prior_" + name] = array

    return damage


def forget(arrays, info):
    del arrays["prior_mean"]


def rename(name):
    def damage(arrays, info):
        info["prior"] = name

    return damage


@pytest.mark.parametrize(
    ("kind", "damage", "complaint"),
    [
        ("gaussian", forget, "its prior 'gaussian' consists of covariance"),
        ("gaussian", change("extra", np.zeros(3)), "its prior 'gaussian' consists of .*extra"),
        ("gaussian", change("mean", np.zeros(4)), r"mean is float64 \(4,\) where float64 \(5,\) was expected"),
        ("gaussian", change("mean", np.zeros(5, "float32")), "mean is float32"),
        ("gaussian", change("mean", np.full(5, np.nan)), "some numbers of its prior are not finite"),
        ("gaussian", change("covariance", -np.eye(5)), "must be positive definite"),
        ("gaussian", rename("mixture"), "its prior 'mixture' consists of"),
        ("gaussian", rename("standard"), "its prior 'standard' consists of"),
        ("gaussian", rename("flow"), "its prior 'flow' is unknown"),
        ("gaussian", rename(["gaussian"]), "does not hold a model of this program"),
        ("gaussian", rename(None), "its prior None is unknown"),
        ("mixture", change("weights", np.full(2, 0.5)), "weights above 0 whose sum is 1"),
        ("mixture", change("weights", np.full(3, 0.5)), "weights above 0 whose sum is 1"),
        ("two-stage", change("values", np.zeros(7, "float32")), r"values is float32 \(7,\) where float32"),
        ("two-stage", change("sigma", np.float64(0)), "sigma is a standard deviation and must be above 0"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(kind, damage, complaint, trained):
    model, path = trained
    model.prior = fitted(kind)
    checkpoint.store_prior(path, model)
    arrays, info = checkpoint.load(path)
    damage(arrays, info)
    checkpoint.save(path, arrays, info)
    with pytest.raises(CheckpointError, match=complaint) as error:
        checkpoint.load_model(path)
    assert "\n" not in str(error.value)


def test_a_prior_of_objects_is_not_unpickled(trained):
    _, path = trained
    arrays, info = checkpoint.load(path)
    arrays["prior_mean"] = np.array([{}], dtype=object)
    checkpoint.save(path, arrays, {**info, "prior": "gaussian"})
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        checkpoint.load_model(path)


def test_every_kind_of_prior_has_its_name():
    kinds = {"standard": Standard, "gaussian": Gaussian, "mixture": Mixture, "two-stage": TwoStage}
    assert kinds == PRIORS
