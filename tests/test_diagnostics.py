"""Warnings: on histories made up for them, and on small models that really go wrong."""

import pytest
from conftest import write_dataset

from vae_np import VAE
from vae_np.run.trainer import Trainer
from vae_np.study.diagnostics import warnings
from vae_np.train import Settings


def warned(latent_dim=128, likelihood="bernoulli", **columns):
    """The warnings about a history whose columns are given, and which is healthy in all others."""
    count = len(next(iter(columns.values())))
    healthy = {"beta": [1.0] * count, "loss": [100.0 - e for e in range(count)], "val_kl": [20.0] * count,
               "val_loss": [101.0 - e for e in range(count)], "active_units": [60] * count, "sigma": [None] * count}
    history = [{"epoch": e + 1, **{name: values[e] for name, values in {**healthy, **columns}.items()}}
               for e in range(count)]
    return warnings(history, Settings(likelihood=likelihood), latent_dim)


def test_a_healthy_history_warns_of_nothing():
    assert not any(warned(loss=[100.0, 90.0, 85.0, 84.0, 83.9][:epochs]) for epochs in range(1, 6))


@pytest.mark.parametrize(("kl", "active"), [(0.9, 60), (20.0, 6)])
def test_collapse(kl, active):
    (line,) = warned(val_kl=[20.0, kl], active_units=[60, active])
    assert line.startswith(f"the posterior has collapsed: {active} of 128 latents are active, KL {kl:.2f} nats; try")
    assert not warned(val_kl=[20.0, 1.0], active_units=[60, 7]), "few, but enough"
    assert not warned(val_kl=[0.3, 0.37]), "it still grows"
    assert warned(val_kl=[9.0, 9.0], active_units=[1, 1], latent_dim=4), "one of four"
    assert not warned(val_kl=[9.0, 9.0], active_units=[1, 1], latent_dim=1), "one of one"
    assert not warned(val_kl=[9.0, 9.0], active_units=[0, 0]), "one validation image has no variance"
    assert not warned(val_kl=[kl], active_units=[active]), "the first epoch has hardly begun"
    assert not warned(val_kl=[kl] * 3, active_units=[active] * 3, beta=[0.2, 0.4, 0.6]), "beta is still rising"


@pytest.mark.parametrize(("sigma", "start"), [
    ([0.1, 0.109, 0.09], None),
    ([0.1, 0.12], "sigma has risen from 0.1000 to 0.1200"),
    ([1 / 255], "sigma is at its smallest"),
    ([0.6, 0.55], "sigma is 0.5500, more than"),
])  # fmt: skip
def test_sigma(sigma, start):
    found = warned(sigma=sigma, likelihood="calibrated")
    assert [line[: len(start)] for line in found] == [start] if start else not found
    assert not warned(sigma=sigma, likelihood="gaussian")


def test_validation_turns_upward():
    val_loss = [100.0, 90.0, 91.0, 90.5, 92.0]
    (line,) = warned(val_loss=val_loss)
    assert line.startswith("validation was best after epoch 2 (90.0, now 92.0)")
    assert not warned(val_loss=val_loss[:4]), "two epochs prove nothing"
    assert not warned(val_loss=[100.0, 92.0, 92.01, 92.02, 92.03]), "a plateau"
    assert not warned(val_loss=val_loss, loss=[100, 90, 91, 92, 93]), "training does not improve either"
    assert not warned(val_loss=val_loss, beta=[0.2, 0.4, 0.6, 0.8, 1.0]), "losses of other betas do not compare"


@pytest.mark.parametrize(("images", "channels", "choice", "start"), [
    ((24, 8), (6, 8), {"epochs": 60, "beta": 300.0, "likelihood": "bernoulli"}, "the posterior has collapsed"),
    ((8, 32), (16, 16), {"epochs": 60, "beta": 0.0, "likelihood": "calibrated"}, "validation was best after epoch"),
])  # fmt: skip
def test_a_model_that_goes_wrong_is_found_out(tmp_path, images, channels, choice, start):
    settings = Settings(batch_size=8, learning_rate=0.01, **choice)
    dataset, found = write_dataset(tmp_path / "faces", *images, test=0), []
    images = dataset.split("train"), dataset.split("validation")
    trainer = Trainer(VAE(16, channels, 8), *images, settings, threads=1)
    for _ in range(settings.epochs):
        trainer.train_epoch()
        found += warnings(trainer.history, settings, 8)
    assert any(line.startswith(start) for line in found)
