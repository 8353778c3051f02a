"""The training loop: it learns, it validates on what it never learned from, and it goes on where it stopped."""

import itertools
import math
import shutil
from dataclasses import fields

import numpy as np
import pytest
from chance import assert_like_draws, assert_uncorrelated
from conftest import write_dataset

from vae_np import VAE
from vae_np.backend import NAME, to_cpu, to_device, xp
from vae_np.disk.dataset import Dataset
from vae_np.errors import CheckpointError, DatasetError, InputError, TrainingError
from vae_np.gradcheck import relative_error
from vae_np.losses import kl_divergence, kl_per_dimension, likelihood_of, sigmoid
from vae_np.run import checkpoint
from vae_np.run import trainer as train_module
from vae_np.run.trainer import Trainer
from vae_np.study.metrics import evaluate
from vae_np.train import Settings, batches, to_float


def trainer_for(dataset, threads=2, channels=(6, 8), **settings):
    settings = Settings(**{"epochs": 3, "batch_size": 8, "warmup_steps": 2, **settings})
    model = VAE(16, channels, latent_dim=4, seed=settings.seed)
    return Trainer(model, *images_of(dataset, settings), settings, dataset.description, threads)


def images_of(dataset, settings):
    return dataset.split("train", settings.limit), dataset.split("validation")


def resume(path, dataset, settings):
    return Trainer.resume(path, *images_of(dataset, settings), settings, dataset.description, threads=2)


def run(trainer, epochs=None):
    while trainer.epoch < (epochs or trainer.settings.epochs):
        trainer.train_epoch()
    return trainer


def state_of(trainer):
    history = [{name: value for name, value in row.items() if name != "images_per_second"} for row in trainer.history]
    arrays = (trainer.model.values, trainer.adam.m, trainer.adam.v, np.stack(trainer.progress))
    return ([to_cpu(array).tobytes() for array in arrays], history, trainer.rng.bit_generator.state, trainer.adam.step,
            None if trainer.likelihood.sigma is None else float(trainer.likelihood.sigma))


def first_batch(dataset):
    return to_device(to_float(dataset.split("train")[:8]))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "calibrated"])
def test_overfits_eight_images(tmp_path, likelihood):
    dataset = write_dataset(tmp_path / "eight", train=8, validation=2, test=0)
    trainer = trainer_for(dataset, threads=1, channels=(16, 16), epochs=300, learning_rate=0.02, beta=0.001,
                          likelihood=likelihood, max_gradient_norm=1e6)
    x = first_batch(dataset)
    for _ in range(trainer.settings.epochs):
        trainer.step(x)
    # The mean of the eight images, the best answer to an unknown one, is 0.11 off; this is 0.004 to 0.022, by the seed.
    assert np.abs(trainer.model.reconstruct(to_cpu(x)) - to_cpu(x)).mean() < 0.03


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(ramps):
    one, same, other = (state_of(run(trainer_for(ramps, seed=seed, epochs=2))) for seed in (0, 0, 1))
    assert one == same
    assert one[0] != other[0]


@pytest.mark.parametrize(("settings", "validation"), [
    ({}, 1), ({"likelihood": "gaussian", "sigma": 0.3, "free_bits": 0.02}, 5),  # fewer than LOOK
    ({"likelihood": "calibrated", "beta_cycles": 2}, 12)], ids=str)
def test_resuming_equals_not_having_stopped(tmp_path, settings, validation):
    dataset = write_dataset(tmp_path / "faces", validation=validation)
    straight, stopped = run(trainer_for(dataset, **settings)), run(trainer_for(dataset, **settings), epochs=1)
    stopped.save(tmp_path / "checkpoint.npz")
    resumed = resume(tmp_path / "checkpoint.npz", dataset, stopped.settings)
    assert state_of(resumed) == state_of(stopped)
    assert state_of(run(resumed)) == state_of(straight)


@pytest.fixture(scope="module")
def shuffles(ramps):
    """Which batch each of 24 images was in, in each of 1,000 epochs (1000, 24), without paying for training.

    The images are single pixels, each with its number for a colour. Batches have 5, 5, 5, 5 and 4 images.
    """
    trainer = trainer_for(ramps, batch_size=5, epochs=1000)
    trainer.images = np.arange(24, dtype=np.uint8).reshape(24, 1, 1, 1)
    epochs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda self, x: epochs[-1].append(to_cpu(x)) or xp.zeros(4))
        patch.setattr(Trainer, "_row", lambda *args: {})
        patch.setattr(Trainer, "look", lambda self: None)
        while trainer.epoch < 1000:
            epochs.append([])
            trainer.train_epoch()
    shown = np.array([np.concatenate(seen) for seen in epochs])
    assert [len(x) for x in epochs[0]] == [5, 5, 5, 5, 4]
    order = np.rint(255 * shown).astype(int).reshape(1000, 24)
    assert (np.sort(order) == np.arange(24)).all(), "every image, once an epoch"
    return np.argsort(order) // 5


def test_every_image_comes_early_and_late_as_often_as_chance_says(shuffles):
    counts = np.stack([(shuffles == number).sum(axis=0) for number in range(5)], axis=1)
    expected = 1000 * np.array([5, 5, 5, 5, 4]) / 24
    # Rows and columns of the table (24 images, 5 batches) have fixed sums, so 23 * 4 counts are free, and Pearson's sum
    # is 24 / 23 of a chi-square: images of one epoch do not fall independently, they take each other's places.
    chi_square = 23 / 24 * ((counts - expected) ** 2 / expected).sum()
    # 92 on average, and outside of these bounds once in 500,000 times. Too even would be as wrong as too uneven.
    assert 41 < chi_square < 172


def test_any_two_images_share_a_batch_as_often_as_chance_says(shuffles):
    together = (shuffles[:, :, None] == shuffles[:, None, :]).sum(axis=0)
    counts = together[np.triu_indices(24, k=1)]
    share = (4 * 5 * 4 + 4 * 3) / (24 * 23)  # 1 / 6: of the ordered pairs, those inside of a batch
    deviation = math.sqrt(1000 * share * (1 - share))
    # One of the 276 pairs is off by that much once in 50,000 times.
    assert np.abs(counts - 1000 * share).max() < 5.5 * deviation
    # Nor does an image stay in its batch from one epoch to the next more or less often than chance says.
    stays = (shuffles[1:] == shuffles[:-1]).sum()
    share = (4 * 5**2 + 4**2) / 24**2
    assert abs(stays - 999 * 24 * share) < 5 * math.sqrt(999 * 24 * share * (1 - share))


def test_only_training_images_change_the_model_and_only_validation_images_are_validated(tmp_path):
    first = write_dataset(tmp_path / "a")
    images = np.load(first.folder / "images.npy")
    images[first.splits["validation"]] = 255 - images[first.splits["validation"]]
    images[first.splits["test"]] = 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    np.save(tmp_path / "b" / "images.npy", images)
    one, other = (run(trainer_for(dataset), epochs=2) for dataset in (first, Dataset(tmp_path / "b")))
    np.testing.assert_array_equal(to_cpu(one.model.values), to_cpu(other.model.values))
    assert one.history[-1]["recon"] == other.history[-1]["recon"]
    assert one.history[-1]["val_recon"] != other.history[-1]["val_recon"]


def test_history_means_are_weighted_by_the_size_of_a_batch(ramps, monkeypatch):
    terms = iter(to_device(np.array([[10.0, 100.0, 1.0, 7.0], [20.0, 200.0, 2.0, 14.0], [50.0, 500.0, 5.0, 35.0]])))

    def step(self, x):
        self.adam.step += 1
        return next(terms)

    monkeypatch.setattr(Trainer, "step", step)
    row = trainer_for(ramps, batch_size=11).train_epoch()  # batches of 11, 11 and 2
    mean = (11 * 1 + 11 * 2 + 2 * 5) / 24
    assert [row[name] for name in ("loss", "recon", "kl", "gradient_norm")] == pytest.approx(
        [mean, 10 * mean, 100 * mean, 7 * mean])


@pytest.mark.parametrize(("settings", "beta"), [
    ({"beta": 0.5, "beta_warmup_epochs": 0}, 0.5),
    ({"beta": 2.0, "beta_warmup_epochs": 2}, 2 * 2 / 6),  # of the last of three steps an epoch
    ({"beta": 2.0, "beta_warmup_epochs": 0, "free_bits": 0.4}, 2.0),
    ({"likelihood": "calibrated", "beta_warmup_epochs": 0}, 1.0)], ids=str)
def test_validation_figures_are_those_of_the_definition_and_of_what_is_minimised(ramps, settings, beta):
    trainer = run(trainer_for(ramps, **settings), epochs=1)
    row, model, sigma = trainer.history[0], trainer.model, trainer.likelihood.sigma
    x = to_device(to_float(ramps.split("validation")))
    eps = to_device(np.random.default_rng(0).standard_normal((len(x), 4), dtype=np.float32))
    logits, mu, log_var = model.forward(x, eps)
    likelihood = likelihood_of("bernoulli") if sigma is None else likelihood_of("gaussian", float(sigma))
    recon, each = float(likelihood(logits, x)[0]), np.sort(to_cpu(kl_per_dimension(mu, log_var)))
    mse = to_cpu(((x - sigmoid(model.decoder.forward(mu))) ** 2).mean(axis=(1, 2, 3)))
    assert row["sigma"] == sigma
    assert row["active_units"] == (to_cpu(mu).var(axis=0) > 0.01).sum()
    assert {name: row[name] for name in row if name.startswith(("val_", "beta"))} == pytest.approx({
        "beta": beta, "val_recon": recon, "val_kl": float(kl_divergence(mu, log_var)[0]),
        "val_loss": recon + beta * np.maximum(each, trainer.settings.free_bits).sum(),
        "val_psnr": np.mean(-10 * np.log10(mse)), "val_kl_max": each[3], "val_kl_median": (each[1] + each[2]) / 2,
        "val_kl_p90": 0.3 * each[2] + 0.7 * each[3], "val_kl_p10": 0.7 * each[0] + 0.3 * each[1]}, rel=1e-5)


def test_looking_leaves_training_as_it_was_and_shows_the_same_faces_and_noise_on_the_same_threads(ramps):
    quiet, looked_at = trainer_for(ramps), trainer_for(ramps)
    for _ in range(2):
        quiet.step(first_batch(ramps))
        looked_at.step(first_batch(ramps))
        evaluate(looked_at.model, looked_at.validation_images, looked_at.likelihood)
        np.testing.assert_array_equal(looked_at.look(), looked_at.look())
    np.testing.assert_array_equal(to_cpu(quiet.model.values), to_cpu(looked_at.model.values))
    run(looked_at, epochs=2)
    assert np.stack(looked_at.progress).shape == (2, 2 * train_module.LOOK, 16, 16, 3)
    np.testing.assert_array_equal(looked_at.look(), looked_at.progress[-1])
    assert looked_at.threads == (2 if NAME == "numpy" else 1)


def test_sigma_follows_the_errors_of_training_steps_and_of_nothing_else(ramps, tmp_path):
    trainer, path = trainer_for(ramps, likelihood="calibrated", batch_size=10), tmp_path / "a.npz"
    expected, pixels = [trainer.likelihood.sigma], 16 * 16 * 3

    def after_step():
        variance, (recon, *_) = expected[-1] ** 2, (trainer.waiting or trainer.terms)[-1]
        error = variance * (2 * float(recon) / pixels - math.log(2 * math.pi * variance))
        expected.append(math.sqrt(0.9 * variance + 0.1 * error))
        assert float(trainer.likelihood.sigma) == pytest.approx(expected[-1], rel=1e-5)
        trainer.save(path)
        assert checkpoint.load_model(path)[2]["likelihood"]["sigma"] == float(trainer.likelihood.sigma)

    row = trainer.train_epoch(after_step)
    assert len(expected) == 4
    assert row["sigma"] == float(trainer.likelihood.sigma) == pytest.approx(expected[-1], rel=1e-5), "not of evaluation"


def test_noise_is_new_in_every_step_and_is_not_that_of_the_weights(ramps):
    trainer, steps = trainer_for(ramps), []
    weights = [to_cpu(parameter.value).ravel() for parameter in trainer.model.parameters if parameter.name == "weight"]
    weights = np.concatenate([weight / weight.std() for weight in weights])
    trainer.model.loss_and_gradient = lambda x, eps, *rest: steps.append(to_cpu(eps).ravel()) or (1.0, 1.0)
    for _ in range(20):
        trainer.step(np.zeros((250, 16, 16, 3), np.float32))
    assert len(steps[0]) == 1000  # a number for each of 4 latents of 250 images
    assert_like_draws(np.concatenate(steps)[:, None], 0, 1)
    for one, other in itertools.combinations(steps, 2):
        assert_uncorrelated(one, other)
    # The first numbers of the stream would be the first weights if it started at the same seed.
    assert_uncorrelated(np.concatenate(steps)[: len(weights)], weights)


@pytest.mark.parametrize("what, message", [
    ("recon", "step 13: the reconstruction is nan"), ("kl", "step 13: the KL is nan"),
    ("inf", "step 13: the gradient is inf"), ("nan", "step 13: the gradient is nan"),
    ("parameters", "step 24: the validation recon is nan")])  # which break in the last step
def test_what_is_not_finite_stops_the_epoch_and_names_the_step(ramps, what, message):
    trainer, taken = trainer_for(ramps, batch_size=1), []  # 24 steps, whose losses are fetched ten at a time
    compute, update = trainer.model.loss_and_gradient, trainer.adam.update

    def explode(*args):
        terms = dict(zip(("recon", "kl"), compute(*args), strict=True))
        taken.append(True)
        if len(taken) == 13 and what in terms:
            terms[what] *= np.nan
        elif len(taken) == 13 and what != "parameters":
            trainer.model.grads[...] = float(what)
        return tuple(terms.values())

    trainer.model.loss_and_gradient = explode
    if what == "parameters":
        trainer.adam.update = lambda rate: update(rate) or (len(taken) == 24 and trainer.model.values.fill(np.nan))
    with pytest.raises(TrainingError, match=f"^epoch 1, {message}; the last checkpoint is as it was; try a"):
        trainer.train_epoch()
    assert len(taken) <= 20 or what == "parameters", "it went on for an epoch"
    assert trainer.history == trainer.progress == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [8, 24])
def test_an_absurd_learning_rate_ends_in_one_error_and_without_a_warning(ramps, threads, batch_size):
    trainer = trainer_for(ramps, threads, batch_size=batch_size, learning_rate=1e9, warmup_steps=0)
    with pytest.raises(TrainingError, match="try a lower learning rate"):  # warnings are errors in these tests
        run(trainer)


def test_an_exploding_gradient_is_clipped(ramps):
    trainer, seen = trainer_for(ramps, max_gradient_norm=1e-3), []
    trainer.adam.update = lambda rate: seen.append(float(np.linalg.norm(to_cpu(trainer.model.grads))))
    trainer.step(first_batch(ramps))
    assert seen == [pytest.approx(1e-3, rel=1e-4)]


@pytest.mark.parametrize(("settings", "first_rate", "expected"), [
    ({"epochs": 10, "beta_warmup_epochs": 1}, 0.005, [0, 2 / 3, 4 / 3, 2, 2, 2]),
    ({"epochs": 4, "beta_warmup_epochs": 1, "beta_cycles": 3}, 0.01, 3 * [0, 1, 2, 2])], ids=["warm-up", "cycles"])
def test_schedules_reach_the_optimizer(ramps, settings, first_rate, expected):
    rates, betas = [], []
    trainer = trainer_for(ramps, learning_rate=0.01, beta=2.0, **settings)  # three steps an epoch
    trainer.adam.update = rates.append
    trainer.model.loss_and_gradient = lambda *args: betas.append(args[3]) or (1.0, 1.0)
    for step in range(len(expected)):
        trainer.adam.step = step
        trainer.step(first_batch(ramps))
    assert rates[:2] == pytest.approx([first_rate, 0.01])  # warmed up in a tenth of all steps, if not sooner
    assert rates[1] > rates[-1]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert betas == pytest.approx(expected)


def test_free_bits_minimise_what_they_say_whatever_the_threads(ramps):
    """The step's gradient and loss, with the whole batch at once as the second opinion."""
    x, seen = to_device(to_float(ramps.split("train")[:24])), []
    for threads in (1, 3):
        trainer = trainer_for(ramps, threads, batch_size=24, beta=0.5, beta_warmup_epochs=0, free_bits=0.6)
        model, eps = trainer.model, np.random.default_rng([0, 1]).standard_normal((24, 4), dtype=np.float32)
        _, mu, log_var = model.forward(x, to_device(eps))
        each = kl_per_dimension(mu, log_var)
        assert 0 < (to_cpu(each) > 0.6).sum() < 4, "some latents are above their free bits, some below"
        weights = 0.5 * (each > 0.6).astype(xp.float32)
        recon, kl = model.loss_and_gradient(x, to_device(eps), trainer.likelihood, weights)
        expected, cost = to_cpu(model.grads).copy(), np.maximum(to_cpu(each), 0.6).sum()
        trainer.adam.update = lambda rate, model=model: seen.append(to_cpu(model.grads).copy())
        terms = trainer.step(x)
        assert relative_error(seen[-1], expected) < 1e-5
        assert [float(term) for term in terms[:2]] == pytest.approx([float(recon), float(kl)], rel=1e-5)
        # Of the difference, since rounding of the much larger recon must not hide the cost.
        assert float(terms[2] - terms[0]) / 0.5 == pytest.approx(cost, abs=1e-3)
        assert cost > float(kl) + 0.003
        assert seen[-1].dtype == np.float32


def test_the_gaussian_keeps_the_very_sigma_of_the_settings(ramps):
    for sigma, expected in ((0.3, 0.3), (None, 0.1)):
        trainer = run(trainer_for(ramps, likelihood="gaussian", sigma=sigma), epochs=1)
        assert float(trainer.likelihood.sigma) == expected


@pytest.mark.parametrize(("settings", "complaint"), [
    *[({name: value}, f"{name} must be a whole number, {least} or more, not {value!r}") for name, value, least in (
        ("epochs", 0, 1), ("batch_size", -1, 1), ("batch_size", 2.5, 1), ("epochs", None, 1), ("limit", 0, 1),
        ("warmup_steps", -1, 0), ("seed", -1, 0))],
    *[({name: value}, f"{name} must be {words}, not {value!r}") for name, value, words in (
        ("learning_rate", math.nan, "above 0"), ("learning_rate", math.inf, "above 0"),
        ("learning_rate", "fast", "above 0"), ("learning_rate", None, "above 0"), ("max_gradient_norm", 0, "above 0"),
        ("beta", -1, "0 or more"), ("beta", math.inf, "0 or more"), ("free_bits", -0.1, "0 or more"))],
    ({"likelihood": "poisson"}, "choose one of bernoulli, gaussian, calibrated"),
    ({"likelihood": "calibrated", "sigma": 0.3}, "sigma is for the gaussian likelihood, not for calibrated"),
    ({"likelihood": "gaussian", "sigma": 0}, "sigma must be above 0"),
    ({"epochs": 3, "beta_cycles": 5}, "5 cycles of beta take two steps each or more, and there are 9 steps"),
], ids=str)
def test_settings_that_make_no_sense_are_refused(ramps, settings, complaint):
    with pytest.raises(InputError, match=complaint):
        trainer_for(ramps, **settings)


def test_numbers_of_numpy_become_plain_ones_that_a_checkpoint_can_hold():
    settings = Settings(epochs=np.int64(2), batch_size=np.uint8(16), learning_rate=np.float32(0.5), beta=2,
                        mirror=np.False_, likelihood="gaussian", sigma=np.float64(0.25), limit=np.int32(3))
    assert [getattr(settings, field.name) for field in fields(Settings)] == [
        2, 16, 0.5, 0.05, 100, 2.0, 0.0, 0, 0.0, False, "gaussian", 0.25, 1e4, 0, 3]
    assert {type(value) for value in vars(settings).values()} == {int, float, bool, str}


@pytest.mark.parametrize(("data", "settings", "error", "complaint"), [
    ({"size": 32}, {}, InputError, r"training images are 32x32, but the model expects 16x16; prepare .* --size 16"),
    ({"validation": 0}, {}, DatasetError, "there are no validation images"),
    ({"train": 0}, {}, DatasetError, "there are no training images"),
    ({"seed": 1}, {}, CheckpointError, "was trained on another dataset"),
    ({}, {"limit": 20}, CheckpointError, "order of its epoch is none of the training images"),
])
def test_what_does_not_fit_is_neither_trained_on_nor_resumed(ramps, tmp_path, data, settings, error, complaint):
    trainer, other = trainer_for(ramps), write_dataset(tmp_path / "other", **data)
    trainer.train_epoch(lambda: trainer.save(tmp_path / "a.npz"))  # the last time, too, the epoch is in progress
    with pytest.raises(error, match=complaint):
        resume(tmp_path / "a.npz", other, Settings(**settings))
    if error is not CheckpointError:
        with pytest.raises(error, match=complaint):
            trainer_for(other)


def test_to_float_maps_bytes_to_0_to_1():
    every_byte = np.arange(256, dtype=np.uint8)
    floats = to_float(every_byte)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (0, 1)
    np.testing.assert_array_equal(np.rint(floats * 255).astype(np.uint8), every_byte)


@pytest.mark.parametrize("order", [[9, 0, 5, 3, 7, 1, 2, 8, 4, 6], [9, 0, 5]])
def test_batches_follow_the_order_but_are_sorted_inside(order):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    found = [to_cpu(batch) for batch in batches(images, 4, np.array(order))]
    rows = [sorted(order[start : start + 4]) for start in range(0, len(order), 4)]
    for batch, expected in zip(found, rows, strict=True):
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, to_float(images[expected]))


def test_about_half_of_the_images_are_mirrored_anew_in_each_epoch_and_none_without_a_generator():
    images = np.arange(200, dtype=np.uint8).reshape(100, 1, 2, 1)  # a pixel of an even number left of an odd one
    images = images.repeat(3, axis=3)
    rng, order = np.random.default_rng(0), np.arange(100)
    seen = [np.rint(255 * np.concatenate([to_cpu(x) for x in batches(images, 8, order, rng)])) for _ in range(50)]
    for pixels in seen:
        np.testing.assert_array_equal(np.sort(pixels, axis=2), images)
        assert pixels.dtype == np.float32
    mirrored = np.array([pixels[:, 0, 0, 0] % 2 == 1 for pixels in seen])
    deviation = math.sqrt(50 / 4)
    assert np.abs(mirrored.sum(axis=0) - 25).max() < 4.5 * deviation, "each image"
    assert abs(mirrored.sum() - 2500) < 4.5 * math.sqrt(5000 / 4)
    assert_uncorrelated(mirrored[0].astype(float), mirrored[1].astype(float))
    np.testing.assert_array_equal(np.rint(255 * to_cpu(next(batches(images, 100, order)))), images)


@pytest.mark.parametrize("mirror", [True, False])
def test_training_mirrors_unless_told_not_to(ramps, mirror):
    trainer, seen = trainer_for(ramps, mirror=mirror, batch_size=24), []
    trainer.step = lambda x: seen.append(to_cpu(x))
    list(trainer.steps())
    images = to_float(ramps.split("train"))
    as_is, turned = ((seen[0] == x).all(axis=(1, 2, 3)) for x in (images, images[:, :, ::-1]))
    assert (as_is | turned).all()
    assert as_is.all() == (not mirror) and turned.any() == mirror
