"""What all paths are compared on: python tests/figures.py OUT.npz writes it with the backend in use.

Without OUT.npz it prints the golden curve, to be pasted into tests/test_paths.py, which says when that is right.
"""

import pprint
import sys
import tempfile
from pathlib import Path

import numpy as np
from conftest import write_dataset

from vae_np import VAE, backend
from vae_np.backend import to_cpu, to_device
from vae_np.fast.workers import Workers
from vae_np.losses import LIKELIHOODS
from vae_np.train import Settings, Training

STEPS, BATCH, GOLDEN = 20, 12, ("bernoulli", "calibrated")


def steps_of(model, images, **settings):
    """recon, kl, loss and norm of the first steps, (4, STEPS): one batch after the other, then from the first again."""
    training, terms = Training(model, images, Settings(**settings)), []
    for start in range(0, STEPS * settings["batch_size"], settings["batch_size"]):
        start %= len(images)
        x = to_device(images[start : start + settings["batch_size"]])
        terms.append([float(term) for term in training.step(x)])
    return np.transpose(terms)


def golden_curve(likelihood, threads):
    """(recon, kl) of every step in float64. Three steps an epoch: beta rises for three epochs, the rate for two steps.

    The norm clips the first step of the one likelihood, and some steps of the other.
    """
    model = VAE(16, channels=(4, 6), latent_dim=3, dtype="float64")
    model.workers = Workers(model, threads)  # at which a plain VAE does not look
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        images = write_dataset(Path(folder) / "ramps").split("train") / 255
    return steps_of(model, images, epochs=7, batch_size=8, learning_rate=0.01, warmup_steps=2, beta_warmup_epochs=3,
                    likelihood=likelihood, max_gradient_norm=250)[:2].T


def parity():
    """{name: array}: results, gradients and curves in float32, from the same weights, images and noise."""
    def model():
        return VAE(32, channels=(8, 16, 32), latent_dim=8, seed=5)

    result, ramp = {}, np.linspace(0, 1, 32, dtype=np.float32)
    colours = np.random.default_rng(3).random((2, STEPS * BATCH, 1, 1, 3), dtype=np.float32) / 2
    images = colours[0] * ramp[:, None, None] + colours[1] * ramp[:, None]
    x, eps = map(to_device, (images[:BATCH], np.random.default_rng(4).standard_normal((BATCH, 8), dtype=np.float32)))
    result |= {f"output {number}": to_cpu(array) for number, array in enumerate(model().forward(x, eps))}
    for name, kind in LIKELIHOODS.items():
        one = model()
        recon, kl = one.loss_and_gradient(x, eps, kind(), 0.7)
        result |= {f"loss {name} recon": to_cpu(recon), f"loss {name} kl": to_cpu(kl)}
        result |= {f"gradient {name} {number}": to_cpu(part.grad) for number, part in enumerate(one.parameters)}
    for options in (*({"likelihood": name} for name in LIKELIHOODS), {"free_bits": 0.05}):
        curves = steps_of(model(), images, epochs=1, batch_size=BATCH, warmup_steps=4, **options)
        result |= {f"curve {options} {number}": curve for number, curve in enumerate(curves)}
    return result


if __name__ == "__main__":
    if len(sys.argv) > 1:
        golden = {f"golden {name} {threads}": golden_curve(name, threads) for name in GOLDEN for threads in (1, 2)}
        np.savez(sys.argv[1], backend=backend.NAME, **golden, **parity())
    else:
        pprint.pp({name: [*map(tuple, golden_curve(name, 1).tolist())] for name in GOLDEN}, width=110, compact=True)
