"""The default model in PyTorch, with the same weights, noise and batches; and how soon either reconstructs how well."""

import itertools
import math
import time

import numpy as np
import torch
from torch.nn import functional as F

from tools.machines import draw
from vae_np import VAE
from vae_np.backend import to_cpu
from vae_np.conv import Conv2d, Enlarge, Shrink
from vae_np.layers import Dense, LeakyReLU, Reshape
from vae_np.losses import CalibratedGaussian
from vae_np.optim import learning_rate_at
from vae_np.run.trainer import Trainer
from vae_np.study.metrics import psnr
from vae_np.train import batches, to_float

MARKS = 20, 22, 24, 26  # dB
LOOKS = 8  # times in an epoch that held-out faces are looked at, while the clock stands


def convolutions(batch, weight, bias, cores, fastest):
    """Images a second of PyTorch's convolution of stride 2 and padding 1, in its better memory format: [one, all]."""
    x, w, b = (torch.from_numpy(a) for a in (batch.transpose(0, 3, 1, 2), weight.transpose(3, 2, 0, 1), bias))
    rates = []
    for threads in (1, cores):
        torch.set_num_threads(threads)
        rates.append(max(
            len(batch) / fastest(torch.conv2d, *(a.contiguous(memory_format=form) for a in (x, w)), b, 2, 1)
            for form in (torch.contiguous_format, torch.channels_last)))
    return rates


def as_images(x):
    """(N, H, W, C) -> PyTorch's (N, C, H, W), in the same memory."""
    return x.permute(0, 3, 1, 2)


class Twin(torch.nn.Module):
    """A VAE's two networks, layer by layer, in PyTorch; its images lie in memory as ours do (channels_last)."""

    def __init__(self, model):
        super().__init__()
        self.model, self.weights = model, torch.nn.ParameterDict()
        for network in (model.encoder, model.decoder):
            for layer in (layer for path in network.paths for layer in path.layers):
                for name, parameter in (("weight", layer.weight), ("bias", layer.bias)) if layer.parameters else ():
                    value = torch.from_numpy(to_cpu(parameter.value).copy())
                    if value.ndim == 4:  # (4, 4, C, F) -> (F, C, 4, 4); of a transposed convolution (C, F, 4, 4)
                        value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
                    self.weights[f"{id(layer)} {name}"] = torch.nn.Parameter(value)

    def apply_layer(self, layer, x):
        """What a layer makes of x."""
        weight, bias = (self.weights.get(f"{id(layer)} {name}") for name in ("weight", "bias"))
        if isinstance(layer, Dense):
            return F.linear(layer.rate * x, weight.t(), bias)
        if isinstance(layer, LeakyReLU):
            return F.leaky_relu(x, layer.slope)
        if isinstance(layer, Reshape):
            flat = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
            flat = flat.reshape(len(x), *layer.shape)
            return as_images(flat) if len(layer.shape) == 3 else flat
        if isinstance(layer, Shrink):
            return F.avg_pool2d(x, layer.factor)
        if isinstance(layer, Enlarge):
            return F.interpolate(x, scale_factor=layer.factor, mode="bilinear", align_corners=False)
        _, stride, padding = layer.geometry
        if isinstance(layer, Conv2d):
            return F.conv2d(x, weight, bias, stride, padding)
        return F.conv_transpose2d(x, weight, bias, stride, padding)

    def apply_network(self, network, x):
        """The sum of what its paths make of x."""
        total = 0
        for path in network.paths:
            y = x
            for layer in path.layers:
                y = self.apply_layer(layer, y)
            total = total + y
        return total

    def encode(self, x):
        """Images (N, C, H, W) -> mu, log_var, of a centred and steady model."""
        mu, h = self.apply_network(self.model.encoder, 4 * (x - 0.5)).chunk(2, 1)
        return mu, -F.softplus(h)

    def decode(self, z):
        """Codes -> logits (N, C, H, W)."""
        return self.apply_network(self.model.decoder, z)

    def reconstruct(self, x):
        """NumPy images (N, H, W, C) through mu."""
        with torch.inference_mode():
            y = torch.sigmoid(self.decode(self.encode(as_images(torch.from_numpy(x)))[0]))
            return y.permute(0, 2, 3, 1).numpy()


def twin_steps(model, images, settings):
    """(the twin, a generator of the training steps that Trainer takes of the model), each step one of the generator."""
    twin, rng = Twin(model), np.random.default_rng([settings.seed, 1])
    adam = torch.optim.Adam(twin.parameters(), fused=True)
    total, likelihood = settings.epochs * math.ceil(len(images) / settings.batch_size), CalibratedGaussian()

    def steps():
        step, variance = 0, float(likelihood.sigma) ** 2
        for _ in range(settings.epochs):
            for array in batches(images, settings.batch_size, rng.permutation(len(images)), rng):
                x = as_images(torch.from_numpy(to_cpu(array)))
                rate = learning_rate_at(step, total, settings.learning_rate, settings.warmup_steps,
                                        settings.final_rate_fraction)
                for group in adam.param_groups:
                    group["lr"] = rate
                eps = torch.from_numpy(rng.standard_normal((len(x), model.latent_dim), dtype=np.float32))
                adam.zero_grad(set_to_none=True)
                mu, log_var = twin.encode(x)
                logits = twin.decode(mu + torch.exp(log_var / 2) * eps)
                error = ((torch.sigmoid(logits) - x) ** 2).sum() / len(x)
                kl = 0.5 * (mu * mu + log_var.exp() - 1 - log_var).sum() / len(x)
                (error / (2 * variance) + kl).backward()
                torch.nn.utils.clip_grad_norm_(twin.parameters(), settings.max_gradient_norm)
                adam.step()
                variance += 0.1 * (error.item() / x[0].numel() - variance)
                variance = max(variance, likelihood.smallest_sigma**2)
                step += 1
                yield

    return twin, steps()


def quality(reconstruct, steps, faces, per_look, limit):
    """Train, and look now and then: [(seconds of training, dB of held-out faces), ...] from 0 s to the last mark."""
    seconds, found, taken = 0.0, [], True
    while taken and seconds < limit and (not found or found[-1][1] < MARKS[-1]):
        found.append((seconds, float(psnr(faces, reconstruct(faces)).mean())))
        start = time.perf_counter()
        taken = sum(1 for _ in itertools.islice(steps, per_look))
        seconds += time.perf_counter() - start
    return [*found, (seconds, float(psnr(faces, reconstruct(faces)).mean()))]


def race(path, dataset, settings, limit):
    """Print when the default model and its twin reach each of MARKS, and draw both curves."""
    images, held_out = dataset.split("train"), dataset.split("validation", 300)
    faces, model = to_float(held_out), VAE(dataset.image_size, seed=settings.seed)
    twin, steps = twin_steps(model, images, settings)  # before the model learns
    trainer = Trainer(model, images, held_out, settings)
    per_look = max(1, trainer.steps_per_epoch // LOOKS)
    ours = (step for _ in range(settings.epochs) for step in trainer.steps())
    found = {"vae_np": quality(model.reconstruct, ours, faces, per_look, limit),
             "PyTorch": quality(twin.reconstruct, steps, faces, per_look, limit)}
    for name, curve in found.items():
        print(f"{name:10s}" + ", ".join(f"{mark} dB after {seconds_to(curve, mark):.1f} s" for mark in MARKS))
    draw(path, ({name: (*zip(*curve, strict=True), "o-") for name, curve in found.items()},
                {"xlabel": "seconds of training", "ylabel": "PSNR of held-out faces, dB"}))


def seconds_to(found, mark):
    """When a curve first reached a mark, by linear interpolation; NaN if it did not."""
    for (before, low), (after, high) in itertools.pairwise(found):
        if low < mark <= high:
            return before + (after - before) * (mark - low) / (high - low)
    return np.nan
