"""Checkpoints come back as they were, are written whole, and nothing else is taken for one."""

import json

import numpy as np
import pytest

from vae_np import VAE, checkpoint
from vae_np.backend import to_cpu
from vae_np.errors import CheckpointError

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
