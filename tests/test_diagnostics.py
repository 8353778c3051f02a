"""Warnings: on histories made up for them, and on small models that really go wrong."""

import pytest
from conftest import write_dataset

from vae_np import VAE
from vae_np.run.trainer import Settings, Trainer
from vae_np.study.diagnostics import warnings


def rows(**columns):
    """A history whose columns are given, and which is healthy in all others."""
    count = len(next(iter(columns.values())))
    healthy = {"beta": [1.0] * count, "loss": [100.0 - e for e in range(count)], "val_kl": [20.0] * count,
               "val_loss": [101.0 - e for e in range(count)], "active_units": [60] * count, "sigma": [None] * count}
    return [{"epoch": e + 1, **{name: values[e] for name, values in {**healthy, **columns}.items()}}
            for e in range(count)]


def warned(history, latent_dim=128, **settings):
    return warnings(history, Settings(**settings), latent_dim)


def test_a_healthy_history_warns_of_nothing():
    history = rows(loss=[100.0, 90.0, 85.0, 84.0, 83.9])
    assert not any(warned(history[: e + 1]) for e in range(5))


@pytest.mark.parametrize(("kl", "active"), [(0.9, 60), (20.0, 6)])
def test_collapse(kl, active):
    (line,) = warned(rows(val_kl=[20.0, kl], active_units=[60, active]))
    assert line.startswith(f"the posterior has collapsed: {active} of 128 latents are active, KL {kl:.2f} nats; try")
    assert not warned(rows(val_kl=[20.0, 1.0], active_units=[60, 7])), "few, but enough"
    assert not warned(rows(val_kl=[0.3, 0.37])), "it still grows"
    assert warned(rows(val_kl=[9.0, 9.0], active_units=[1, 1]), latent_dim=4), "one of four"
    assert not warned(rows(val_kl=[9.0, 9.0], active_units=[1, 1]), latent_dim=1), "one of one"
    assert not warned(rows(val_kl=[9.0, 9.0], active_units=[0, 0])), "one validation image has no variance"
    assert not warned(rows(val_kl=[kl], active_units=[active])), "the first epoch has hardly begun"
    assert not warned(rows(val_kl=[kl] * 3, active_units=[active] * 3, beta=[0.2, 0.4, 0.6])), "beta is still rising"


def test_sigma():
    assert not warned(rows(sigma=[0.1, 0.109, 0.09]), likelihood="calibrated")
    (line,) = warned(rows(sigma=[0.1, 0.12]), likelihood="calibrated")
    assert "sigma has risen from 0.1000 to 0.1200" in line
    (line,) = warned(rows(sigma=[1 / 255]), likelihood="calibrated")
    assert "sigma is at its smallest" in line
    (line,) = warned(rows(sigma=[0.6, 0.55]), likelihood="calibrated")
    assert "sigma is 0.5500, more than" in line
    assert not warned(rows(sigma=[0.1, 0.12]), likelihood="gaussian")


def test_validation_turns_upward():
    val_loss = [100.0, 90.0, 91.0, 90.5, 92.0]
    (line,) = warned(rows(val_loss=val_loss))
    assert line.startswith("validation was best after epoch 2 (90.0, now 92.0)")
    assert not warned(rows(val_loss=val_loss[:4])), "two epochs prove nothing"
    assert not warned(rows(val_loss=[100.0, 92.0, 92.01, 92.02, 92.03])), "a plateau"
    assert not warned(rows(val_loss=val_loss, loss=[100, 90, 91, 92, 93])), "training does not improve either"
    assert not warned(rows(val_loss=val_loss, beta=[0.2, 0.4, 0.6, 0.8, 1.0])), "losses of other betas do not compare"


def test_a_model_that_collapses_is_found_out(ramps):
    settings = Settings(epochs=4, batch_size=8, learning_rate=0.01, beta=300.0, beta_warmup_epochs=0)
    trainer = Trainer(VAE(16, (6, 8), 4), ramps, settings, threads=1)
    for _ in range(settings.epochs):
        trainer.train_epoch()
    assert any(line.startswith("the posterior has collapsed") for line in warnings(trainer.history, settings, 4))


def test_a_model_that_memorises_is_found_out(tmp_path):
    dataset = write_dataset(tmp_path / "few", train=8, validation=32, test=0)
    settings = Settings(epochs=60, batch_size=8, learning_rate=0.01, beta=0.0, likelihood="calibrated")
    trainer, found = Trainer(VAE(16, (16, 16), 8), dataset, settings, threads=1), []
    for _ in range(settings.epochs):
        trainer.train_epoch()
        found += warnings(trainer.history, settings, 8)
    assert any(line.startswith("validation was best after epoch") for line in found)
