"""Checkpoints come back as they were, are written whole, and nothing else is taken for one."""

import json

import numpy as np
import pytest
from filelock import FileLock

from vae_np import VAE
from vae_np.backend import to_cpu, to_device
from vae_np.disk.sealed import seal
from vae_np.errors import CheckpointError
from vae_np.run import checkpoint
from vae_np.run.trainer import Trainer
from vae_np.study.priors import PRIORS, prior_kind
from vae_np.train import Settings

SMALL = {"image_size": 16, "channels": [4, 6], "latent_dim": 5}
MISSING = object()


def write(path, **arrays):
    """A file with the right checksum and any arrays."""
    path.write_bytes(seal(arrays))


@pytest.mark.parametrize(("damage", "complaint"), [
    (lambda path: None, "there is no checkpoint"),
    (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
    (lambda path: path.write_text("<html>not found</html>"), "is damaged or no checkpoint"),
    (lambda path: np.savez(path, values=np.arange(3), info=np.array('{"format_version": 3}')), "is damaged"),
    (lambda path: write(path, values=np.arange(3)), "is damaged or no checkpoint"),
    (lambda path: write(path, info=np.array("no json")), "is damaged or no checkpoint"),
    (lambda path: write(path, info=np.array("[1]")), "is damaged or no checkpoint"),
    (lambda path: write(path, info=np.array('{"format_version": 99}')), "version 99, this program reads 3 and 5"),
])
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


def save_training(path, model):
    """A checkpoint that has everything a run's has, if not with much sense."""
    values = to_cpu(model.values)
    checkpoint.save(path, {"values": values, "m": values, "v": values, "terms": np.zeros((0, 4)),
                           "progress": np.zeros((0, 16, 16, 16, 3), np.uint8), "order": np.zeros(0, np.int64)},
                    {name: model.settings if name == "model" else {} for name in checkpoint.INFO})


def fitted(name, seed=0):
    """A prior of this kind, fitted to clouds of 5 dimensions that are nowhere near N(0, I)."""
    rng = np.random.default_rng(seed)
    mu = 2 + 3 * rng.standard_normal((60, 5), dtype=np.float32)
    few = {"flow": {"steps": 2}, "mixture": {"components": 3, "max_steps": 3}}.get(name, {})
    return prior_kind(name).fit(mu, np.zeros_like(mu), rng, **few)


@pytest.fixture
def trained(tmp_path):
    """A model and the path of its checkpoint."""
    model = VAE(**SMALL, seed=3)
    save_training(tmp_path / "a.npz", model)
    return model, tmp_path / "a.npz"


def test_a_checkpoint_of_format_3_computes_what_it_did(tmp_path, rng):
    path, model = tmp_path / "a.npz", VAE(**SMALL, seed=3, centred=False, shortcut=False, steady=False)
    save_training(path, model)
    arrays, info = checkpoint.load(path)
    info |= {"format_version": 3, "model": SMALL, "variance": 0.0}
    path.write_bytes(seal({"info": np.array(json.dumps(info)), **arrays}))
    x, loaded = rng.random((2, 16, 16, 3), dtype=np.float32), checkpoint.load_model(path)[0]
    assert [len(network.paths) for network in (loaded.encoder, loaded.decoder)] == [1, 1]
    np.testing.assert_array_equal(loaded.reconstruct(x), model.reconstruct(x))
    h = loaded.encoder.paths[0].forward(to_device(x))
    np.testing.assert_allclose(loaded.encode(x)[0], to_cpu(h)[:, :5], rtol=1e-5, atol=1e-6)


VALUES = to_cpu(VAE(**SMALL).values)
NO_MODEL = "does not hold a model of this program"


@pytest.mark.parametrize(("kind", "name", "value", "complaint"), [
    *[(None, name, MISSING, f"lacks {name}; it is no checkpoint of training")
      for name in checkpoint.ARRAYS + checkpoint.INFO],
    *[(None, "model", model, NO_MODEL)
      for model in ({"image_size": 60}, {"depth": 3}, {**SMALL, "latent_dim": 6}, None, [1])],
    (None, "values", np.where(np.arange(VALUES.size) == 7, np.float32(np.nan), VALUES), "parameters are not finite"),
    ("gaussian", "prior_mean", MISSING, "its prior 'gaussian' consists of covariance"),
    ("gaussian", "prior_extra", np.zeros(3), "its prior 'gaussian' consists of .*extra"),
    ("gaussian", "prior_mean", np.zeros(4), r"mean is float64 \(4,\) where float64 \(5,\) was expected"),
    ("gaussian", "prior_mean", np.zeros(5, "float32"), "mean is float32"),
    ("gaussian", "prior_mean", np.full(5, np.nan), "some numbers of its prior are not finite"),
    ("gaussian", "prior_mean", np.array([{}], dtype=object), "is damaged or no checkpoint"),  # or unpickled
    ("gaussian", "prior_covariance", -np.eye(5), "must be positive definite"),
    ("gaussian", "prior", "mixture", "its prior 'mixture' consists of"),
    ("gaussian", "prior", "standard", "its prior 'standard' consists of"),
    ("gaussian", "prior", ["gaussian"], NO_MODEL),
    ("mixture", "prior_weights", np.full(2, 0.5), "weights above 0 whose sum is 1"),
    ("mixture", "prior_weights", np.full(3, 0.5), "weights above 0 whose sum is 1"),
    ("flow", "prior_values", np.zeros(7, "float32"), r"values is float32 \(7,\) where float32"),
    ("flow", "prior_covariance", -np.eye(5), "must be positive definite"),
])
def test_a_model_or_a_prior_that_does_not_fit_is_refused(trained, kind, name, value, complaint):
    model, path = trained
    if kind:
        model.prior = fitted(kind)
        checkpoint.store_prior(path, model)
    arrays, info = checkpoint.load(path)
    place = info if name in (*checkpoint.INFO, "prior") else arrays
    place[name] = value
    if value is MISSING:
        del place[name]
    checkpoint.save(path, arrays, info)
    with pytest.raises(CheckpointError, match=complaint) as error:
        checkpoint.load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PRIORS)
def test_a_model_and_a_stored_prior_are_loaded_bit_for_bit_and_draw_the_same_faces(name, trained, rng):
    model, path = trained
    before, info_before = checkpoint.load(path)
    plain = checkpoint.load_model(path)[0].sample(4, np.random.default_rng(1))
    model.prior = fitted(name)
    faces = model.sample(4, np.random.default_rng(1))
    checkpoint.store_prior(path, model)
    loaded, arrays, info = checkpoint.load_model(path)
    if name != "standard":
        assert type(loaded.prior) is prior_kind(name)
        for key, array in model.prior.arrays.items():
            np.testing.assert_array_equal(loaded.prior.arrays[key], array)
        z = np.ones((3, 5), np.float32)
        np.testing.assert_array_equal(loaded.prior.log_density(z), model.prior.log_density(z))
    np.testing.assert_array_equal(loaded.sample(4, np.random.default_rng(1)), faces)
    x = rng.random((2, 16, 16, 3), dtype=np.float32)
    np.testing.assert_array_equal(loaded.reconstruct(x), model.reconstruct(x))
    for key, array in before.items():
        np.testing.assert_array_equal(arrays[key], array)
    assert info == {**info_before, "prior": name}
    assert np.array_equal(faces, plain) == (name == "standard"), "without a prior it is the standard one"


def test_weights_to_pass_on_are_half_as_precise_and_no_training_goes_on_from_them(ramps, tmp_path, rng):
    path, weights, settings = tmp_path / "a.npz", tmp_path / "weights.npz", Settings(epochs=1, batch_size=8)
    images = ramps.split("train"), ramps.split("validation")
    Trainer(VAE(**SMALL), *images, settings, ramps.description).save(path)
    model = checkpoint.load_model(path)[0]
    model.prior = fitted("flow")
    checkpoint.store_prior(path, model)
    model, _, info = checkpoint.load_model(path)
    checkpoint.save_weights(weights, model, info)
    assert {name: str(array.dtype) for name, array in checkpoint.load(weights)[0].items()} == {
        "values": "float16", "prior_values": "float16", "prior_mean": "float64", "prior_covariance": "float64"}
    loaded, arrays, info = checkpoint.load_model(weights)
    assert info["data"]["folder"] == ramps.folder.name and str(ramps.folder) not in repr(info)
    half = to_cpu(model.values).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(to_cpu(loaded.values), half)
    assert arrays["values"].dtype == loaded.values.dtype == loaded.prior.arrays["values"].dtype == np.float32
    x = rng.random((2, 16, 16, 3), dtype=np.float32)
    np.testing.assert_allclose(loaded.reconstruct(x), model.reconstruct(x), atol=2e-3)
    with pytest.raises(CheckpointError, match=r"weights.npz holds weights alone, from which no training can go on"):
        Trainer.resume(weights, *images, settings, ramps.description)
    loaded.prior = fitted("gaussian")
    checkpoint.store_prior(weights, loaded)
    assert checkpoint.load_model(weights)[0].prior.name == "gaussian"
    loaded.values[3] = 1e5
    before = weights.read_bytes()
    with pytest.raises(CheckpointError, match=r"some weights are too large for .*weights.npz: float16 ends at 65,504"):
        checkpoint.save_weights(weights, loaded, info)
    assert weights.read_bytes() == before


def test_a_prior_that_is_no_longer_known_is_left_out_with_a_note_and_another_takes_its_place(trained, capsys):
    model, path = trained
    arrays, info = checkpoint.load(path)
    sigma = {"prior_sigma": np.float64(0.5)}
    checkpoint.save(path, arrays | sigma, {**info, "prior": "two-stage"})
    loaded, *_ = checkpoint.load_model(path)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in (str(path), "'two-stage', is not known", "samples come from N(0, I)", "05_sample.py --prior"):
        assert part in line
    assert loaded.prior is None
    np.testing.assert_array_equal(to_cpu(loaded.values), to_cpu(model.values))
    loaded.prior = fitted("gaussian")
    checkpoint.store_prior(path, loaded)
    assert checkpoint.load_model(path)[0].prior.name == "gaussian"
    assert not capsys.readouterr().err


def test_a_new_prior_takes_the_place_of_the_old_one_and_training_on_drops_it(ramps, tmp_path):
    path, settings = tmp_path / "a.npz", Settings(epochs=1, batch_size=8)
    images = ramps.split("train"), ramps.split("validation")
    trainer = Trainer(VAE(**SMALL), *images, settings, ramps.description)
    trainer.save(path)
    names = set(checkpoint.load(path)[0])
    for name in ("flow", "mixture", "standard", "gaussian"):
        trainer.model.prior = fitted(name)
        checkpoint.store_prior(path, trainer.model)
        assert set(checkpoint.load(path)[0]) == names | {"prior_" + key for key in trainer.model.prior.arrays}
        prior = checkpoint.load_model(path)[0].prior
        assert prior is None if name == "standard" else type(prior) is prior_kind(name)
    resumed = Trainer.resume(path, *images, settings, ramps.description)
    resumed.train_epoch()
    resumed.save(path)
    assert checkpoint.load_model(path)[0].prior is None


def test_a_prior_is_not_stored_beside_other_parameters_or_while_a_training_is_at_work(trained):
    model, path = trained
    model.prior, content, other = fitted("gaussian"), path.read_bytes(), FileLock(path.parent / ".lock")
    other.acquire()  # as another program does, whereas this one may hold a folder twice
    with pytest.raises(CheckpointError, match=r"a training is writing to .*; wait for it, then fit the prior"):
        checkpoint.store_prior(path, model)
    assert path.read_bytes() == content
    other.release()
    checkpoint.store_prior(path, model)
    other.acquire(timeout=0)  # nothing is held any more
    other.release()
    save_training(path, VAE(**SMALL, seed=4))
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match="has changed since the prior was fitted to its codes; fit it again"):
        checkpoint.store_prior(path, model)
    assert path.read_bytes() == content


def test_priors_go_by_the_names_that_checkpoints_hold():
    assert list(PRIORS) == ["standard", "gaussian", "mixture", "flow"]
