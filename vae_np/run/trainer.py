"""The training loop: shuffled batches, forward, loss, backward, step; after each epoch a look at held-out images."""

import csv
import math
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
from tqdm import tqdm

from vae_np.backend import to_cpu, to_device, xp
from vae_np.disk.dataset import batches, kept_on_device, to_float
from vae_np.disk.files import replacing
from vae_np.errors import CheckpointError, DatasetError, InputError, TrainingError
from vae_np.fast.workers import Workers
from vae_np.losses import LIKELIHOODS, CalibratedGaussian, free_bits, likelihood_of
from vae_np.optim import Adam, beta_at, clip_gradient, cyclical_beta_at, learning_rate_at
from vae_np.run import checkpoint
from vae_np.study.metrics import evaluate
from vae_np.study.pictures import to_uint8

LOOK = 8  # faces and samples that are looked at after each epoch
TERMS = ("reconstruction", "KL", "loss", "gradient")  # what a step returns; "gradient" is its norm
KL_QUANTILES = {"max": 1, "p90": 0.9, "median": 0.5, "p10": 0.1}  # over the latents
REPORT_EVERY = 10  # steps, and not after each: to read a loss, the host must wait for a GPU


@dataclass
class Settings:
    """How to train; the defaults are the ones that lesson 03 explains."""

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 2e-3  # the peak, reached after warmup_steps
    final_rate_fraction: float = 0.05  # of the peak: where the cosine of the learning rate ends
    warmup_steps: int = 100
    beta: float = 1.0
    beta_warmup_epochs: float = 1.0
    beta_cycles: int = 0  # if above 0, they take the place of the warm-up
    free_bits: float = 0.0  # nats, of each latent
    likelihood: str = "bernoulli"
    sigma: float | None = None  # of the Gaussian likelihood
    # A seat belt: Adam does not mind the scale of the gradient, so only an explosion is cut short. At 64x64, norms of
    # 500 to 5,000 are usual for the Bernoulli likelihood, 20,000 for the Gaussian with sigma 0.1. They go with
    # 1 / sigma^2: at 0.05 and less the first steps are cut short, too (gradient_norm in the history tells).
    max_gradient_norm: float = 1e5
    seed: int = 0
    limit: int | None = None  # use the first `limit` training images only

    def __post_init__(self):
        if self.likelihood not in LIKELIHOODS:
            raise InputError(f"likelihood {self.likelihood!r} is unknown; choose one of {', '.join(LIKELIHOODS)}")
        for name in ("epochs", "batch_size", "learning_rate", "max_gradient_norm"):
            self._require(name, lambda value: value > 0, "above 0")
        for name in ("final_rate_fraction", "warmup_steps", "beta", "beta_warmup_epochs", "beta_cycles", "free_bits",
                     "seed"):
            self._require(name, lambda value: value >= 0, "0 or more")
        if self.sigma is not None:
            if self.likelihood != "gaussian":
                raise InputError(f"sigma is for the gaussian likelihood, not for {self.likelihood}")
            self._require("sigma", lambda value: value > 0, "above 0")
        if self.limit is not None:
            self._require("limit", lambda value: value >= 1, "at least 1")

    def _require(self, name, holds, words):
        value = getattr(self, name)
        if not (math.isfinite(value) and holds(value)):
            raise InputError(f"{name} must be {words}, not {value}")


@dataclass
class Epoch:
    """An epoch in progress. order is the one in which it takes the training images, the rest is about its steps so far.

    What train_step returns is `waiting` on the device for a few steps, until it is fetched to `terms`. variance is the
    sum of sigma^2 over the images.
    """

    order: np.ndarray
    terms: list = field(default_factory=list)
    waiting: list = field(default_factory=list)
    variance: float = 0.0

    def images_done(self, batch_size):
        """How many images its steps have taken; only the last batch may be smaller than the others."""
        return min((len(self.terms) + len(self.waiting)) * batch_size, len(self.order))

    def sigma(self, batch_size):
        """The sigma of a CalibratedGaussian for all its steps: held-out images are not judged with the last batch's."""
        return math.sqrt(float(self.variance) / self.images_done(batch_size))


class Trainer:
    """Everything that changes while a model learns: parameters, Adam's moments, random state, history.

    dataset is a data.Dataset; only its training images are learned from, and only its validation images are validated
    on. threads is passed to parallel.Workers.
    """

    def __init__(self, model, dataset, settings, threads=None):
        if dataset.image_size != model.image_size:
            raise InputError(f"{dataset.folder} holds images of size {dataset.image_size}, the model expects "
                             f"{model.image_size}; prepare the dataset with --size {model.image_size}")
        self.images = kept_on_device(dataset.split("train", settings.limit))
        self.validation_images = dataset.split("validation")
        for name, images in (("training", self.images), ("validation", self.validation_images)):
            if not len(images):
                raise DatasetError(f"{dataset.folder} has no {name} images; prepare a dataset that has")
        self.model, self.dataset, self.settings = model, dataset, settings
        if 2 * settings.beta_cycles > settings.epochs * self.steps_per_epoch:
            raise InputError(f"{settings.beta_cycles} cycles of beta take two steps each or more, and there are "
                             f"{settings.epochs * self.steps_per_epoch} steps; try fewer")
        self.likelihood = likelihood_of(settings.likelihood, settings.sigma)
        self.workers = model.workers = Workers(model, threads)
        self.adam = Adam(model.values, model.grads)
        # Not the seed alone: the weights were drawn from that stream, and the noise must not repeat them.
        self.rng = np.random.default_rng([settings.seed, 1])
        self.history = []
        self.progress = []  # after each epoch, what `look` saw
        self.current = None  # the Epoch in progress
        self.in_step = False  # inside of what must not be interrupted, since it would be half done

    @contextmanager
    def _whole(self):
        self.in_step = True
        yield
        self.in_step = False

    @property
    def epoch(self):
        """How many epochs are done."""
        return len(self.history)

    @property
    def steps_per_epoch(self):
        return math.ceil(len(self.images) / self.settings.batch_size)

    def schedules(self, step):
        """The learning rate and beta of a step."""
        s = self.settings
        total = s.epochs * self.steps_per_epoch
        rate = learning_rate_at(step, total, s.learning_rate, s.warmup_steps, s.final_rate_fraction)
        if s.beta_cycles:
            return rate, cyclical_beta_at(step, total, s.beta, s.beta_cycles)
        return rate, beta_at(step, s.beta, s.beta_warmup_epochs * self.steps_per_epoch)

    def train_step(self, x):
        """One step of stochastic gradient descent on images x (B, H, W, 3) on the device.

        Returns (recon, kl, loss, norm), the last that of the gradient, the others in nats per image: 0-d arrays of the
        device, which on a GPU are still being computed. Raises TrainingError where memory does not suffice.
        """
        rate, beta = self.schedules(self.adam.step)
        eps = self.rng.standard_normal((len(x), self.model.latent_dim), dtype=self.model.dtype)
        try:
            if self.settings.free_bits:  # which latents are beyond theirs is for the whole batch to say
                kl_term, weights = free_bits(self.workers.kl_per_dimension(x), self.settings.free_bits)
                recon, kl = self.workers.loss_and_gradient(x, to_device(eps), self.likelihood, beta * weights)
            else:
                recon, kl = self.workers.loss_and_gradient(x, to_device(eps), self.likelihood, beta)
                kl_term = kl
        except MemoryError:  # CuPy's own is one, too
            raise TrainingError(f"there is not enough memory for a step on {len(x)} images; try batches of "
                                f"{max(1, len(x) // 2)}") from None
        norm = clip_gradient(self.model.grads, self.settings.max_gradient_norm)
        terms = recon, kl, recon + beta * kl_term, norm
        if xp is np:  # a GPU would have to be waited for; its terms are looked at in _fetch, a few steps later
            self._check_finite(TERMS, terms, self.adam.step + 1)
        self.adam.update(rate)
        return terms

    def _fetch(self):
        """Fetch the terms of the last few steps to the host. Raises TrainingError if one is not finite."""
        epoch = self.current
        if not epoch.waiting:
            return
        fetched = to_cpu(xp.stack([xp.stack(terms) for terms in epoch.waiting]))
        for step, terms in enumerate(fetched, start=self.adam.step - len(fetched) + 1):
            self._check_finite(TERMS, terms, step)
        with self._whole():
            epoch.terms.extend(fetched.tolist())
            epoch.waiting.clear()

    def _check_finite(self, names, values, step):
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(f"epoch {self.epoch + 1}, step {step}: the {name} is {value}; the last checkpoint "
                                    "is as it was; try a lower learning rate")

    def train_epoch(self, after_step=lambda: None):
        """Go once through the training images in a new random order; append a row to the history and return it.

        An epoch that was interrupted, or resumed from a checkpoint in its middle, goes on where it was. after_step is
        called after each step, when the trainer can be saved.
        """
        start, batch_size = time.perf_counter(), self.settings.batch_size
        if self.current is None:
            with self._whole():
                self.current = Epoch(self.rng.permutation(len(self.images)))
        epoch = self.current
        count, done = len(epoch.order), epoch.images_done(batch_size)
        bar = tqdm(total=count, initial=done, desc=f"epoch {self.epoch + 1}/{self.settings.epochs}", unit="img",
                   leave=False)
        with bar, self.workers.one_blas_thread():
            for x in batches(self.images, batch_size, epoch.order[done:]):
                with self._whole():
                    epoch.waiting.append(self.train_step(x))
                    if isinstance(self.likelihood, CalibratedGaussian):
                        epoch.variance += self.likelihood.sigma**2 * len(x)
                bar.update(len(x))
                if len(epoch.waiting) == REPORT_EVERY:
                    self._fetch()
                    recon, kl, loss, _ = epoch.terms[-1]
                    bar.set_postfix(loss=f"{loss:.0f}", recon=f"{recon:.0f}", kl=f"{kl:.1f}", refresh=False)
                after_step()
        self._fetch()
        speed = (count - done) / (time.perf_counter() - start)
        if isinstance(self.likelihood, CalibratedGaussian):
            self.likelihood.sigma = epoch.sigma(batch_size)
        row, faces = self._row(epoch, speed), self.look()
        with self._whole():
            self.current = None
            self.history.append(row)
            self.progress.append(faces)
        return row

    def _row(self, epoch, speed):
        sizes = np.full(len(epoch.terms), self.settings.batch_size)
        sizes[-1] -= sizes.sum() - len(epoch.order)
        recon, kl, loss, norm = np.average(epoch.terms, axis=0, weights=sizes).tolist()
        _, beta = self.schedules(self.adam.step - 1)
        held_out = evaluate(self.workers, self.validation_images, self.likelihood)
        # The last step of an epoch can break a model, too, and a broken model must not be saved.
        names = "recon", "kl", "psnr"
        self._check_finite([f"validation {name}" for name in names], [held_out[name] for name in names], self.adam.step)
        each_kl = held_out["kl_per_dimension"]
        kl_term, _ = free_bits(to_device(each_kl), self.settings.free_bits)
        # val_loss weighs KL by the beta that the epoch ended with; while beta rises, `loss` averages over smaller ones.
        return {
            "epoch": self.epoch + 1, "loss": loss, "recon": recon, "kl": kl, "beta": beta,
            "val_loss": held_out["recon"] + beta * float(kl_term), "val_recon": held_out["recon"],
            "val_kl": held_out["kl"], "val_psnr": held_out["psnr"], "images_per_second": speed,
            "gradient_norm": norm, "sigma": None if self.likelihood.sigma is None else float(self.likelihood.sigma),
            "active_units": held_out["active_units"],
            **{f"val_kl_{name}": float(np.quantile(each_kl, q)) for name, q in KL_QUANTILES.items()},
        }  # fmt: skip

    def look(self):
        """The same held-out faces reconstructed and the same noise decoded, every time: uint8 (2 * LOOK, H, W, 3)."""
        z = np.random.default_rng(0).standard_normal((LOOK, self.model.latent_dim), dtype=self.model.dtype)
        faces = self.model.reconstruct(to_float(self.validation_images[:LOOK]))
        return to_uint8(np.concatenate([faces, self.model.decode(z)]))

    def save(self, path):
        """Write a checkpoint from which `resume` goes on as if nothing had happened, between any two steps.

        Raises TrainingError, and leaves an older checkpoint as it was, if a loss, a gradient or a parameter is not
        finite.
        """
        epoch = self.current or Epoch(np.zeros(0, np.int64))
        if self.current:
            self._fetch()
        values = to_cpu(self.model.values)
        if not np.isfinite(values).all():
            raise TrainingError(f"epoch {self.epoch + 1}, step {self.adam.step}: some parameters are not finite; the "
                                "last checkpoint is as it was; try a lower learning rate")
        sigma = epoch.sigma(self.settings.batch_size) if epoch.variance else self.likelihood.sigma
        info = {
            "model": self.model.settings,
            "training": asdict(self.settings),
            "likelihood": {"name": self.likelihood.name, "sigma": None if sigma is None else float(sigma)},
            "variance": float(epoch.variance),
            "step": self.adam.step,
            "random_state": self.rng.bit_generator.state,
            "history": self.history,
            "data": self.dataset.description,
        }
        shape = (0, 0, self.model.image_size, self.model.image_size, 3)
        arrays = {"values": values, "m": to_cpu(self.adam.m), "v": to_cpu(self.adam.v),
                  "progress": np.stack(self.progress) if self.progress else np.zeros(shape, np.uint8),
                  "order": epoch.order.astype(np.int64), "terms": np.reshape(epoch.terms, (-1, len(TERMS)))}
        checkpoint.save(path, arrays, info)

    @classmethod
    def resume(cls, path, dataset, settings, threads=None):
        """A trainer that goes on from the checkpoint at path.

        Raises CheckpointError if there is none, if it was trained on another dataset, or if it does not fit.
        """
        model, arrays, info = checkpoint.load_model(path)
        trainer = cls(model, dataset, settings, threads)
        try:
            if info["data"]["fingerprint"] != dataset.fingerprint:
                raise CheckpointError(f"{path} was trained on another dataset ({info['data']['source']}) than "
                                      f"{dataset.folder}; give the same --data, or another --out")
            trainer._restore(arrays, info)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{path} is no checkpoint of this program's training ({error!r})") from None
        return trainer

    def _restore(self, arrays, info):
        self.adam.m[...], self.adam.v[...] = to_device(arrays["m"]), to_device(arrays["v"])
        self.adam.step = info["step"]
        self.rng.bit_generator.state = info["random_state"]
        self.history = info["history"]
        self.progress = list(arrays["progress"])
        if len(arrays["order"]):
            if not np.array_equal(np.sort(arrays["order"]), np.arange(len(self.images))):
                raise ValueError("the order of its epoch is none of the training images")
            self.current = Epoch(arrays["order"], arrays["terms"].tolist(), variance=info["variance"])
        if self.likelihood.sigma is not None:
            self.likelihood.sigma = info["likelihood"]["sigma"]


def write_history(path, history):
    """Write the history as a table of comma-separated values, a row an epoch."""
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=history[0])
        table.writeheader()
        table.writerows(history)
