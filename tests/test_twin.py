"""PyTorch's twin of the model, with which lesson 10 runs a race: it must be the same model, and learn the same."""

import numpy as np
import pytest
from conftest import write_dataset

from vae_np import VAE
from vae_np.backend import NAME
from vae_np.run.trainer import Trainer
from vae_np.train import Settings, to_float

pytest.importorskip("torch", reason="the twin takes PyTorch: pip install torch")
pytestmark = pytest.mark.skipif(NAME == "cupy", reason="the race is one of CPUs")


def test_the_twin_learns_as_the_model_does(tmp_path):
    from tools import twin

    dataset = write_dataset(tmp_path / "faces", train=40)
    images, settings = dataset.split("train"), Settings(epochs=2, batch_size=8, warmup_steps=2)
    model = VAE(16, (4, 6), latent_dim=5)
    other, steps = twin.twin_steps(model, images, settings)
    x = to_float(images[:10])
    np.testing.assert_allclose(other.reconstruct(x), model.reconstruct(x), atol=1e-5)
    before = model.reconstruct(x)
    trainer = Trainer(model, images, dataset.split("validation"), settings)
    for _ in zip(trainer.steps(), range(5), strict=False):
        next(steps)
    after = model.reconstruct(x)
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(other.reconstruct(x), after, atol=2e-3)


def test_a_mark_is_reached_between_two_looks():
    from tools.twin import seconds_to

    found = [(0.0, 5.0), (1.0, 10.0), (3.0, 30.0)]
    assert [seconds_to(found, mark) for mark in (7.5, 20, 30)] == [0.5, 2.0, 3.0]
    assert np.isnan(seconds_to(found, 31))


def test_a_race_ends_where_the_steps_do():
    from tools import twin

    x, steps = np.full((1, 8, 8, 3), 0.5, np.float32), iter(range(5))
    found = twin.quality(lambda faces: faces + 0.1, steps, x, 2, 10)
    assert len(found) == 5 and next(steps, None) is None
    assert all(quality == pytest.approx(20, abs=0.01) for _, quality in found)


def test_the_race_is_drawn_and_said(tmp_path, capsys, monkeypatch):
    from tools import twin

    monkeypatch.setattr(twin, "MARKS", (1, 2))
    dataset = write_dataset(tmp_path / "faces", train=80, size=64)
    twin.race(tmp_path / "quality.png", dataset, Settings(epochs=1), limit=60)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["vae_np", "PyTorch"] and all("2 dB after" in line for line in lines)
    assert (tmp_path / "quality.png").is_file()
