"""What the two backends are compared on: python tests/parity.py OUT.npz writes it with the backend in use."""

import sys

import numpy as np

from vae_np import VAE
from vae_np.backend import to_cpu, to_device
from vae_np.fast.workers import Workers
from vae_np.losses import LIKELIHOODS
from vae_np.run.trainer import Settings, Trainer

STEPS, BATCH = 20, 12


class Images:
    """Stands in for a data.Dataset: smooth random images, the same everywhere."""

    folder, image_size = "smooth random images", 32

    def __init__(self):
        ramp = np.linspace(0, 1, self.image_size)
        colours = np.random.default_rng(3).random((2, STEPS * BATCH, 1, 1, 3))
        pixels = colours[0] * ramp[:, None, None] + colours[1] * ramp[:, None]
        self.images = np.rint(127 * pixels).astype(np.uint8)

    def split(self, name, limit=None):
        return self.images[:limit]


def figures():
    """{name: NumPy array}: results, gradients and curves of training, from the same weights, images and noise."""
    result, dataset = {}, Images()
    x = dataset.images[:BATCH] * np.float32(1 / 255)
    eps = np.random.default_rng(4).standard_normal((BATCH, 8), dtype=np.float32)
    for name, kind in LIKELIHOODS.items():
        model = VAE(32, channels=(8, 16, 32), latent_dim=8, seed=5)
        for part, array in zip(("logits", "mu", "log_var"), model.forward(to_device(x), to_device(eps)), strict=True):
            result[f"output {part}"] = to_cpu(array)
        terms = Workers(model).loss_and_gradient(to_device(x), to_device(eps), kind(), 0.7)
        result[f"loss {name}"] = np.array([float(term) for term in terms])
        for number, parameter in enumerate(model.parameters):
            result[f"gradient {name} {number} {parameter.name}"] = to_cpu(parameter.grad)

        settings = Settings(epochs=1, batch_size=BATCH, learning_rate=2e-3, warmup_steps=4, likelihood=name)
        trainer = Trainer(VAE(32, channels=(8, 16, 32), latent_dim=8, seed=5), dataset, settings)
        steps = [trainer.train_step(to_device(dataset.images[start : start + BATCH] * np.float32(1 / 255)))
                 for start in range(0, STEPS * BATCH, BATCH)]
        result[f"curve {name}"] = np.array([[float(term) for term in step] for step in steps])
    return result


if __name__ == "__main__":
    np.savez(sys.argv[1], **figures())
