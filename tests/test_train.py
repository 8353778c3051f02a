"""The training loop: it learns, it validates on what it never learned from, and it goes on where it stopped."""

import csv
import itertools
import math
import shutil

import numpy as np
import pytest
from chance import assert_like_draws, assert_uncorrelated
from conftest import write_dataset

from vae_np import VAE
from vae_np.backend import NAME, to_cpu, to_device, xp
from vae_np.disk.dataset import Dataset, to_float
from vae_np.errors import CheckpointError, DatasetError, InputError, TrainingError
from vae_np.gradcheck import relative_error
from vae_np.losses import Bernoulli, kl_divergence, kl_per_dimension, sigmoid
from vae_np.run import checkpoint
from vae_np.run import trainer as train_module
from vae_np.run.trainer import Settings, Trainer, write_history
from vae_np.study.metrics import evaluate

SMALL = {"image_size": 16, "channels": (6, 8), "latent_dim": 4}


def trainer_for(dataset, threads=2, **settings):
    settings = Settings(**{"epochs": 3, "batch_size": 8, "warmup_steps": 2, **settings})
    return Trainer(VAE(**SMALL, seed=settings.seed), dataset, settings, threads)


def run(trainer, epochs=None):
    while trainer.epoch < (epochs or trainer.settings.epochs):
        trainer.train_epoch()
    return trainer


def state_of(trainer):
    return {"values": to_cpu(trainer.model.values), "m": to_cpu(trainer.adam.m), "v": to_cpu(trainer.adam.v),
            "progress": np.stack(trainer.progress)}


def without_speed(history):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "calibrated"])
def test_overfits_eight_images(tmp_path, likelihood):
    dataset = write_dataset(tmp_path / "eight", train=8, validation=2, test=0)
    settings = Settings(epochs=300, batch_size=8, learning_rate=0.02, warmup_steps=2, beta=0.001,
                        likelihood=likelihood, max_gradient_norm=1e6)
    trainer = Trainer(VAE(16, channels=(16, 16), latent_dim=4), dataset, settings, threads=1)
    x = to_float(dataset.split("train"))
    before = np.abs(trainer.model.reconstruct(x) - x).mean()
    for _ in range(trainer.settings.epochs):
        trainer.train_step(to_device(x))
    after = np.abs(trainer.model.reconstruct(x) - x).mean()
    # The mean of the eight images, the best answer to an unknown one, is 0.11 off; this is 0.004 to 0.022, by the seed.
    assert after < 0.03, f"mean absolute error {before:.3f} before, {after:.3f} after"


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(ramps):
    runs = [run(trainer_for(ramps, seed=seed, epochs=2)) for seed in (0, 0, 1)]
    for name, array in state_of(runs[0]).items():
        np.testing.assert_array_equal(array, state_of(runs[1])[name], name)
    assert without_speed(runs[0].history) == without_speed(runs[1].history)
    assert not np.array_equal(state_of(runs[0])["values"], state_of(runs[2])["values"])


@pytest.mark.parametrize("settings", [{}, {"likelihood": "gaussian", "sigma": 0.3, "free_bits": 0.02},
                                      {"likelihood": "calibrated", "beta_cycles": 2}], ids=str)
def test_resuming_equals_not_having_stopped(ramps, tmp_path, settings):
    straight = run(trainer_for(ramps, **settings))
    stopped = run(trainer_for(ramps, **settings), epochs=1)
    stopped.save(tmp_path / "checkpoint.npz")
    resumed = Trainer.resume(tmp_path / "checkpoint.npz", ramps, stopped.settings, threads=2)
    assert resumed.likelihood.sigma == stopped.likelihood.sigma
    run(resumed)
    for name, array in state_of(straight).items():
        np.testing.assert_array_equal(state_of(resumed)[name], array, name)
    assert without_speed(resumed.history) == without_speed(straight.history)
    assert resumed.rng.bit_generator.state == straight.rng.bit_generator.state
    assert resumed.likelihood.sigma == straight.likelihood.sigma


def test_an_epoch_shows_every_training_image_once_in_a_new_order(ramps, monkeypatch):
    seen = []
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, x: seen.append(to_cpu(x)) or step(self, x))
    run(trainer_for(ramps, batch_size=7), epochs=2)
    assert [len(x) for x in seen] == [7, 7, 7, 3] * 2
    epochs = [np.concatenate(seen[:4]), np.concatenate(seen[4:])]
    expected = sorted(image.tobytes() for image in to_float(ramps.split("train")))
    for epoch in epochs:
        assert sorted(image.tobytes() for image in epoch) == expected
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.fixture(scope="module")
def shuffles(ramps):
    """Which batch each of 24 images was in, in each of 1,000 epochs (1000, 24), without paying for training.

    The images are single pixels, each with its number for a colour. Batches have 5, 5, 5, 5 and 4 images.
    """
    trainer = trainer_for(ramps, batch_size=5, epochs=1000)
    trainer.images = np.arange(24, dtype=np.uint8).reshape(24, 1, 1, 1)
    epochs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self, x: epochs[-1].append(to_cpu(x)) or xp.zeros(4))
        patch.setattr(Trainer, "_row", lambda *args: {})
        patch.setattr(Trainer, "look", lambda self: None)
        while trainer.epoch < 1000:
            epochs.append([])
            trainer.train_epoch()
    batch_of = np.full((1000, 24), -1)
    for epoch, seen in enumerate(epochs):
        assert [len(x) for x in seen] == [5, 5, 5, 5, 4]
        for number, x in enumerate(seen):
            batch_of[epoch, np.rint(255 * x).astype(int).ravel()] = number
    assert batch_of.min() == 0, "every image is in a batch, and so, by their sizes, in one only"
    return batch_of


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


def test_only_training_images_change_the_model_and_only_validation_images_are_validated(tmp_path, monkeypatch):
    first = write_dataset(tmp_path / "a")
    images = np.load(first.folder / "images.npy")
    images[first.splits["validation"]] = 255 - images[first.splits["validation"]]
    images[first.splits["test"]] = 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    np.save(tmp_path / "b" / "images.npy", images)
    other = Dataset(tmp_path / "b")
    runs = [run(trainer_for(dataset), epochs=2) for dataset in (first, other)]
    np.testing.assert_array_equal(to_cpu(runs[0].model.values), to_cpu(runs[1].model.values))
    assert runs[0].history[-1]["recon"] == runs[1].history[-1]["recon"]
    assert runs[0].history[-1]["val_recon"] != runs[1].history[-1]["val_recon"]


def test_history_means_are_weighted_by_the_size_of_a_batch(ramps, monkeypatch):
    terms = iter(to_device(np.array([[10.0, 100.0, 1.0, 0.0], [20.0, 200.0, 2.0, 0.0], [50.0, 500.0, 5.0, 0.0]])))

    def step(self, x):
        self.adam.step += 1
        return next(terms)

    monkeypatch.setattr(Trainer, "train_step", step)
    row = trainer_for(ramps, batch_size=11).train_epoch()  # batches of 11, 11 and 2
    mean = (11 * 1 + 11 * 2 + 2 * 5) / 24
    assert (row["loss"], row["recon"], row["kl"]) == pytest.approx((mean, 10 * mean, 100 * mean))


def test_validation_figures_are_those_of_the_definition(ramps):
    trainer = run(trainer_for(ramps, beta=0.5, beta_warmup_epochs=0), epochs=1)
    row, model = trainer.history[0], trainer.model
    x = to_device(to_float(ramps.split("validation")))
    eps = to_device(np.random.default_rng(0).standard_normal((len(x), 4), dtype=np.float32))
    logits, mu, log_var = model.forward(x, eps)
    recon, kl = float(Bernoulli()(logits, x)[0]), float(kl_divergence(mu, log_var)[0])
    mse = to_cpu(((x - sigmoid(model.decoder.forward(mu))) ** 2).mean(axis=(1, 2, 3)))
    assert row["val_recon"] == pytest.approx(recon, rel=1e-5)
    assert row["val_kl"] == pytest.approx(kl, rel=1e-5)
    assert row["val_loss"] == pytest.approx(recon + 0.5 * kl, rel=1e-5)
    assert row["val_psnr"] == pytest.approx(float(np.mean(-10 * np.log10(mse))), rel=1e-5)
    assert row["beta"] == 0.5


def test_validation_leaves_training_as_it_was(ramps):
    quiet, looked_at = trainer_for(ramps), trainer_for(ramps)
    for x in (to_float(ramps.split("train")[:8]), to_float(ramps.split("train")[8:16])):
        quiet.train_step(to_device(x))
        looked_at.train_step(to_device(x))
        evaluate(looked_at.workers, looked_at.validation_images, looked_at.likelihood)
        looked_at.look()
    np.testing.assert_array_equal(to_cpu(quiet.model.values), to_cpu(looked_at.model.values))


def test_calibrated_sigma_after_an_epoch_is_that_of_the_training_images(ramps):
    trainer = run(trainer_for(ramps, likelihood="calibrated"), epochs=1)
    sigma = trainer.likelihood.sigma
    evaluate(trainer.workers, trainer.validation_images, trainer.likelihood)
    assert trainer.likelihood.sigma == sigma, "evaluation must not calibrate on held-out images"
    # For the best sigma, recon / D = log sigma + (1 + log 2 pi) / 2 for each batch; the epoch's lies close to that.
    implied = math.exp(trainer.history[0]["recon"] / (16 * 16 * 3) - 0.5 * (1 + math.log(2 * math.pi)))
    assert sigma == pytest.approx(implied, rel=0.05)


def test_noise_is_new_in_every_step_and_is_not_that_of_the_weights(ramps):
    trainer = trainer_for(ramps)
    weights = [to_cpu(parameter.value).ravel() for parameter in trainer.model.parameters if parameter.name == "weight"]
    weights = np.concatenate([weight / weight.std() for weight in weights])
    steps = []
    trainer.workers.loss_and_gradient = lambda x, eps, *rest: steps.append(to_cpu(eps).ravel()) or (1.0, 1.0)
    for _ in range(20):
        trainer.train_step(np.zeros((250, 16, 16, 3), np.float32))
    assert len(steps[0]) == 1000  # a number for each of 4 latents of 250 images
    assert_like_draws(np.concatenate(steps)[:, None], 0, 1)
    for one, other in itertools.combinations(steps, 2):
        assert_uncorrelated(one, other)
    # The first numbers of the stream would be the first weights if it started at the same seed.
    assert_uncorrelated(np.concatenate(steps)[: len(weights)], weights)


@pytest.mark.parametrize("term, message", [
    ("recon", "the reconstruction is nan"), ("kl", "the KL is nan"), ("inf", "the gradient is inf"),
    ("nan", "the gradient is nan")])
def test_what_is_not_finite_stops_the_epoch_and_names_the_step(ramps, term, message):
    trainer = trainer_for(ramps, batch_size=1)  # 24 steps, whose losses are fetched ten at a time
    compute = trainer.workers.loss_and_gradient
    taken = []

    def explode(x, *rest):
        recon, kl = compute(x, *rest)
        taken.append(len(x))
        if len(taken) == 13:
            if term in ("inf", "nan"):
                trainer.model.grads[...] = float(term)
            return (recon * np.nan if term == "recon" else recon), (kl * np.nan if term == "kl" else kl)
        return recon, kl

    trainer.workers.loss_and_gradient = explode
    with pytest.raises(TrainingError, match=f"^epoch 1, step 13: {message}; the last checkpoint is as it was; try a"):
        trainer.train_epoch()
    assert len(taken) <= 20, "it went on for an epoch"
    assert trainer.history == []


def test_a_model_that_breaks_in_the_last_step_of_an_epoch_is_not_recorded(ramps):
    trainer = trainer_for(ramps, batch_size=24)
    update = trainer.adam.update
    trainer.adam.update = lambda rate: update(rate) or trainer.model.values.fill(np.nan)
    with pytest.raises(TrainingError, match="the validation recon is nan"):
        trainer.train_epoch()
    assert trainer.history == []
    assert trainer.progress == []


def test_an_exploding_gradient_is_clipped(ramps):
    trainer = trainer_for(ramps, max_gradient_norm=1e-3)
    seen = []
    trainer.adam.update = lambda rate: seen.append(float(np.linalg.norm(to_cpu(trainer.model.grads))))
    trainer.train_step(to_device(to_float(ramps.split("train")[:8])))
    assert seen == [pytest.approx(1e-3, rel=1e-4)]


def test_history_records_the_beta_of_the_last_step(ramps):
    trainer = run(trainer_for(ramps, beta=2.0, beta_warmup_epochs=2), epochs=2)  # three steps an epoch
    assert [row["beta"] for row in trainer.history] == pytest.approx([2 * 2 / 6, 2 * 5 / 6])
    for row in trainer.history:
        assert row["val_loss"] == pytest.approx(row["val_recon"] + row["beta"] * row["val_kl"])


def test_limit_takes_the_first_training_images(ramps):
    trainer = trainer_for(ramps, limit=5)
    np.testing.assert_array_equal(to_cpu(trainer.images), ramps.split("train")[:5])
    assert len(trainer.validation_images) == 8


def test_schedules_reach_the_optimizer(ramps, monkeypatch):
    rates, betas = [], []
    trainer = trainer_for(ramps, epochs=10, learning_rate=0.01, beta=2.0, beta_warmup_epochs=1)
    monkeypatch.setattr(trainer.adam, "update", lambda rate: rates.append(rate))
    monkeypatch.setattr(trainer.workers, "loss_and_gradient", lambda *args: betas.append(args[3]) or (1.0, 1.0))
    for step in range(6):  # three steps an epoch
        trainer.adam.step = step
        trainer.train_step(to_device(to_float(ramps.split("train")[:8])))
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert betas == pytest.approx([0, 2 / 3, 4 / 3, 2, 2, 2])


def test_cycles_take_the_place_of_the_warm_up(ramps, monkeypatch):
    betas = []
    trainer = trainer_for(ramps, epochs=4, beta=2.0, beta_warmup_epochs=1, beta_cycles=3)  # twelve steps
    monkeypatch.setattr(trainer.adam, "update", lambda rate: None)
    monkeypatch.setattr(trainer.workers, "loss_and_gradient", lambda *args: betas.append(args[3]) or (1.0, 1.0))
    for step in range(12):
        trainer.adam.step = step
        trainer.train_step(to_device(to_float(ramps.split("train")[:8])))
    assert betas == pytest.approx(3 * [0, 1, 2, 2])


def test_too_many_cycles_for_the_steps_are_refused(ramps):
    with pytest.raises(InputError, match="5 cycles of beta take two steps each or more, and there are 9 steps"):
        trainer_for(ramps, epochs=3, beta_cycles=5)


def test_free_bits_minimise_what_they_say_whatever_the_threads(ramps):
    """The step's gradient and loss, with the whole batch at once as the second opinion."""
    x, seen = to_device(to_float(ramps.split("train")[:24])), []
    for threads in (1, 3):
        trainer = trainer_for(ramps, threads, batch_size=24, beta=0.5, beta_warmup_epochs=0, free_bits=0.02)
        model, eps = trainer.model, np.random.default_rng([0, 1]).standard_normal((24, 4), dtype=np.float32)
        _, mu, log_var = model.forward(x, to_device(eps))
        each = kl_per_dimension(mu, log_var)
        assert 0 < (to_cpu(each) > 0.02).sum() < 4, "some latents are above their free bits, some below"
        weights = 0.5 * (each > 0.02).astype(xp.float32)
        recon, kl = model.loss_and_gradient(x, to_device(eps), trainer.likelihood, weights)
        expected, loss = to_cpu(model.grads).copy(), float(recon) + 0.5 * np.maximum(to_cpu(each), 0.02).sum()
        trainer.adam.update = lambda rate, model=model: seen.append(to_cpu(model.grads).copy())
        terms = trainer.train_step(x)
        assert relative_error(seen[-1], expected) < 1e-5
        assert [float(term) for term in terms[:3]] == pytest.approx([float(recon), float(kl), loss], rel=1e-5)
        cost = np.maximum(to_cpu(each), 0.02).sum()  # which rounding of the much larger recon must not hide
        assert float(terms[2] - terms[0]) / 0.5 == pytest.approx(cost, abs=1e-3)
        assert cost > float(kl) + 0.003
        assert seen[-1].dtype == np.float32


def test_free_bits_keep_latents_alive(ramps):
    """A weight on the KL that kills every latent of this small model; half a nat free of charge keeps them all."""
    active = [run(trainer_for(ramps, epochs=30, beta=30.0, beta_warmup_epochs=0, learning_rate=0.01, free_bits=nats))
              .history[-1] for nats in (0.0, 0.5)]
    assert active[0]["val_kl"] < 0.1
    assert active[1]["val_kl"] > 1
    assert [row["active_units"] for row in active] == [0, 4]


def test_validation_is_judged_by_what_is_minimised(ramps):
    row = run(trainer_for(ramps, beta=2.0, beta_warmup_epochs=0, free_bits=0.4), epochs=1).history[0]
    assert row["val_loss"] > row["val_recon"] + 2 * row["val_kl"] + 0.1
    assert row["val_loss"] >= row["val_recon"] + 2 * 4 * 0.4 * (1 - 1e-6)


def test_the_gaussian_keeps_the_very_sigma_of_the_settings(ramps):
    trainer = run(trainer_for(ramps, likelihood="gaussian", sigma=0.3), epochs=2)
    assert trainer.likelihood.sigma == 0.3


def test_the_gaussian_takes_the_sigma_of_the_settings(ramps):
    assert trainer_for(ramps, likelihood="gaussian", sigma=0.3).likelihood.sigma == 0.3
    assert trainer_for(ramps, likelihood="gaussian").likelihood.sigma == 0.1
    with pytest.raises(InputError, match="sigma is for the gaussian likelihood, not for calibrated"):
        Settings(likelihood="calibrated", sigma=0.3)


def test_a_checkpoint_within_an_epoch_has_the_sigma_of_all_its_steps(ramps, tmp_path):
    trainer, sigmas = trainer_for(ramps, likelihood="calibrated"), []

    def stop_after_three():
        sigmas.append(float(trainer.likelihood.sigma))
        if len(sigmas) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train_epoch(stop_after_three)
    trainer.save(tmp_path / "checkpoint.npz")
    _, _, info = checkpoint.load_model(tmp_path / "checkpoint.npz")
    assert info["likelihood"]["sigma"] == pytest.approx(math.sqrt(np.mean(np.square(sigmas))), rel=1e-6)
    assert info["likelihood"]["sigma"] != pytest.approx(sigmas[-1], rel=1e-3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "calibrated"])
def test_history_watches_the_latents_and_the_gradient(ramps, likelihood):
    trainer = trainer_for(ramps, likelihood=likelihood)
    norms, step = [], trainer.train_step
    trainer.train_step = lambda x: norms.append(step(x)) or norms[-1]
    row = run(trainer, epochs=1).history[0]
    terms = evaluate(trainer.workers, trainer.validation_images, trainer.likelihood)
    assert row["gradient_norm"] == pytest.approx(np.mean([float(terms[3]) for terms in norms]), rel=1e-6)
    assert row["active_units"] == terms["active_units"]
    each = np.sort(terms["kl_per_dimension"])
    assert row["val_kl_max"] == pytest.approx(each[-1], rel=1e-5)
    assert row["val_kl_median"] == pytest.approx((each[1] + each[2]) / 2, rel=1e-5)
    assert row["sigma"] == (None if likelihood == "bernoulli" else pytest.approx(float(trainer.likelihood.sigma)))


def test_write_history(tmp_path):
    write_history(tmp_path / "runs" / "history.csv", [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 2.25}])
    with open(tmp_path / "runs" / "history.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "loss": "2.5"}, {"epoch": "2", "loss": "2.25"}]


def test_progress_shows_the_same_faces_and_noise_every_epoch(ramps):
    trainer = run(trainer_for(ramps), epochs=2)
    assert np.stack(trainer.progress).shape == (2, 2 * train_module.LOOK, 16, 16, 3)
    np.testing.assert_array_equal(trainer.look(), trainer.look())
    np.testing.assert_array_equal(trainer.look(), trainer.progress[-1])


def test_what_does_not_fit_is_refused(ramps, tmp_path):
    with pytest.raises(InputError, match=r"holds images of size 16, the model expects 32; prepare .* --size 32"):
        Trainer(VAE(image_size=32, channels=(4, 4)), ramps, Settings())
    lonely = write_dataset(tmp_path / "lonely", validation=0)
    with pytest.raises(DatasetError, match="has no validation images"):
        trainer_for(lonely)
    run(trainer_for(ramps), epochs=1).save(tmp_path / "checkpoint.npz")
    other = write_dataset(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="was trained on another dataset"):
        Trainer.resume(tmp_path / "checkpoint.npz", other, Settings())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": -1}, "batch_size must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"beta": -1}, "beta must be 0 or more"),
        ({"beta": float("inf")}, "beta must be 0 or more"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"likelihood": "poisson"}, "choose one of bernoulli, gaussian, calibrated"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        Settings(**settings)


@pytest.mark.parametrize("validation", [1, 5])
def test_a_run_with_few_validation_images_is_saved_and_resumed(tmp_path, validation):
    dataset = write_dataset(tmp_path / "few", validation=validation)
    trainer = run(trainer_for(dataset), epochs=1)
    trainer.save(tmp_path / "checkpoint.npz")
    resumed = Trainer.resume(tmp_path / "checkpoint.npz", dataset, trainer.settings)
    np.testing.assert_array_equal(resumed.progress, trainer.progress)


def test_a_checkpoint_holds_what_the_lessons_need(ramps, tmp_path):
    run(trainer_for(ramps), epochs=1).save(tmp_path / "checkpoint.npz")
    arrays, info = checkpoint.load(tmp_path / "checkpoint.npz")
    assert set(arrays) == {"values", "m", "v", "progress", "order", "terms"}
    assert info["model"] == {**SMALL, "channels": [6, 8]}
    assert info["data"] == ramps.description
    assert info["step"] == 3
    assert [row["epoch"] for row in info["history"]] == [1]


def test_training_and_looking_share_their_threads(ramps):
    trainer = trainer_for(ramps, threads=3)
    trainer.look()
    assert trainer.model.workers is trainer.workers
    assert trainer.workers.threads == (3 if NAME == "numpy" else 1)
