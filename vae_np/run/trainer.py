"""A training that is watched on held-out images, saved between any two steps, and resumed as if never interrupted."""

import math
import time
import warnings
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from vae_np.backend import to_cpu, to_device, xp
from vae_np.errors import CheckpointError, DatasetError, InputError, TrainingError
from vae_np.fast import processes, voices
from vae_np.fast.cores import one_blas_thread
from vae_np.fast.gpu import IN_USE, kept_on_device
from vae_np.fast.signals import uninterrupted
from vae_np.fast.workers import ParallelVAE, Workers
from vae_np.losses import free_bits
from vae_np.run import checkpoint
from vae_np.study.metrics import evaluate
from vae_np.study.pictures import to_uint8
from vae_np.study.priors import GaussianPrior
from vae_np.train import Training, to_float

LOOK = 8  # faces and samples that are looked at after each epoch
FITTED = 1000  # training images whose codes say where those of samples are
TERMS = ("reconstruction", "KL", "loss", "gradient")  # what a step returns; "gradient" is its norm
KL_QUANTILES = {"max": 1, "p90": 0.9, "median": 0.5, "p10": 0.1}  # over the latents
REPORT_EVERY = 10  # steps, and not after each: to read a loss, the host must wait for a GPU


class Trainer(Training):
    """Training, and its history.

    images are learned from, validation_images only validated on: uint8 (N, H, W, 3), both. data describes them in
    checkpoints, such as Dataset.description does: a run is resumed only on data of the same data["fingerprint"].
    """

    def __init__(self, model, images, validation_images, settings, data=None, threads=None):
        size = model.image_size
        for name, array in (("training", images), ("validation", validation_images)):
            if not len(array):
                raise DatasetError(f"there are no {name} images; prepare a dataset that has")
            if array.shape[1:3] != (size, size):
                raise InputError("{} images are {}x{}, but the model expects {}x{}; prepare them with --size {}".format(
                    name, *array.shape[1:3], size, size, size))
        super().__init__(model, kept_on_device(images), settings)
        self.threads = 1
        if isinstance(model, ParallelVAE):
            model.workers = Workers(model, threads)
            self.adam.model = model
            self.threads = model.workers.busy(settings.batch_size)
        self.validation_images, self.data = validation_images, data or {"fingerprint": None}
        self.history, self.progress = [], []  # a row and what `look` saw after each epoch
        # The epoch in progress: the order in which it takes the images, empty where there is none, and what its steps
        # returned. That is `waiting` on the device for a few steps, until it is fetched to `terms`.
        self.order, self.terms, self.waiting = np.zeros(0, np.int64), [], []

    @property
    def epoch(self):
        """How many epochs are done."""
        return len(self.history)

    def step(self, x):
        """Training.step. Raises TrainingError where memory does not suffice."""
        try:
            return super().step(x)
        except MemoryError:  # CuPy's own is one, too
            raise TrainingError(f"there is not enough memory for a step on {len(x)} images; try batches of "
                                f"{max(1, len(x) // 2)}") from None

    @property
    def images_done(self):
        """How many images of the epoch are done; only its last batch may be smaller than the others."""
        return min((len(self.terms) + len(self.waiting)) * self.settings.batch_size, len(self.order))

    def _fetch(self):
        """Fetch the terms of the last few steps to the host. Raises TrainingError if one is not finite."""
        if not self.waiting:
            return
        fetched = to_cpu(xp.stack([xp.stack(terms) for terms in self.waiting]))
        for step, terms in enumerate(fetched, start=self.adam.step - len(fetched) + 1):
            self._check_finite(TERMS, terms, step)
        with uninterrupted():
            self.terms += fetched.tolist()
            self.waiting = []

    def _check_finite(self, names, values, step):
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(f"epoch {self.epoch + 1}, step {step}: the {name} is {value}; the last checkpoint "
                                    "is as it was; try a lower learning rate")

    def train_epoch(self, after_step=lambda: None):
        """Go once through the training images in a new random order; append a row to the history and return it.

        An epoch that was interrupted, or resumed from a checkpoint in its middle, goes on where it was. after_step is
        called after each step, when the trainer can be saved. Where there are several processes, all of them call this.
        """
        processes.compare(dataset=(self.data["fingerprint"], len(self.images), len(self.validation_images)),
                          **self.model.settings, **vars(self.settings),
                          checkpoint=(self.adam.step, self.rng.bit_generator.state))
        with warnings.catch_warnings():
            # Of numbers that are no longer finite: they end the training in `_check_finite`, in one line. np.errstate
            # would not reach the workers' threads.
            warnings.simplefilter("ignore", RuntimeWarning)
            start = time.perf_counter()
            with uninterrupted() as stopped:
                if not len(self.order):
                    self.order = self.rng.permutation(len(self.images))
                done = self.images_done
                self._go_on(after_step, stopped)
            self._fetch()
            speed = (len(self.order) - done) / (time.perf_counter() - start)
            held_out = evaluate(self.model, self.validation_images, self.likelihood)
            with uninterrupted():
                row, faces = self._row(held_out, speed), self.look()
                self.order, self.terms = self.order[:0], []
                self.history.append(row)
                self.progress.append(faces)
        return row

    def _go_on(self, after_step, stopped):
        """Take the steps that the epoch still lacks, until there is something in `stopped`."""
        count, steps = len(self.order), self.steps(self.order[self.images_done :])
        bar = tqdm(total=count, initial=self.images_done, desc=f"epoch {self.epoch + 1}/{self.settings.epochs}",
                   unit="img", leave=False)
        with bar, one_blas_thread():
            while self.images_done < count and not stopped:
                self.waiting.append(next(steps))
                bar.update(self.images_done - bar.n)
                if len(self.waiting) == REPORT_EVERY or not IN_USE:
                    self._fetch()
                    recon, kl, loss, _ = self.terms[-1]
                    bar.set_postfix(loss=f"{loss:.0f}", recon=f"{recon:.0f}", kl=f"{kl:.1f}", refresh=False)
                if not stopped:
                    after_step()
                processes.check()

    def _row(self, held_out, speed):
        sizes = np.full(len(self.terms), self.settings.batch_size)
        sizes[-1] -= sizes.sum() - len(self.order)
        recon, kl, loss, norm = np.average(self.terms, axis=0, weights=sizes).tolist()
        _, beta = self.schedules(self.adam.step - 1)
        # The last step of an epoch can break a model, too, and a broken model must not be saved.
        names = "recon", "kl", "psnr"
        self._check_finite([f"validation {name}" for name in names], [held_out[name] for name in names], self.adam.step)
        each_kl, sigma = held_out["kl_per_dimension"], self.likelihood.sigma
        kl_term, _ = free_bits(to_device(each_kl), self.settings.free_bits)
        # val_loss weighs KL by the beta that the epoch ended with; while beta rises, `loss` averages over smaller ones.
        return {
            "epoch": self.epoch + 1, "loss": loss, "recon": recon, "kl": kl, "beta": beta,
            "val_loss": held_out["recon"] + beta * float(kl_term), "val_recon": held_out["recon"],
            "val_kl": held_out["kl"], "val_psnr": held_out["psnr"], "images_per_second": speed,
            "gradient_norm": norm, "sigma": None if sigma is None else float(sigma),
            "active_units": held_out["active_units"],
            **{f"val_kl_{name}": float(np.quantile(each_kl, q)) for name, q in KL_QUANTILES.items()},
        }  # fmt: skip

    def look(self):
        """The same held-out faces reconstructed and the same noise decoded, every time: uint8 (2 * LOOK, H, W, 3).

        The noise becomes codes by a Gaussian that is fitted to those of some training images (see study/priors.py).
        """
        some = to_cpu(self.images[np.arange(min(FITTED, len(self.images)))])
        prior = GaussianPrior.fit(*self.model.encode(to_float(some)), None)
        faces = self.model.reconstruct(to_float(self.validation_images[:LOOK]))
        return to_uint8(np.concatenate([faces, self.model.decode(prior.sample(LOOK, np.random.default_rng(0)))]))

    def save(self, path):
        """Write a checkpoint from which `resume` goes on as if nothing had happened, between any two steps.

        Of several processes the first writes.

        Raises TrainingError, and leaves an older checkpoint as it was, if a loss, a gradient or a parameter is not
        finite.
        """
        self._fetch()
        values = to_cpu(self.model.values)
        if not np.isfinite(values).all():
            raise TrainingError(f"epoch {self.epoch + 1}, step {self.adam.step}: some parameters are not finite; the "
                                "last checkpoint is as it was; try a lower learning rate")
        sigma = self.likelihood.sigma
        info = {
            "model": self.model.settings,
            "training": asdict(self.settings),
            "likelihood": {"name": self.likelihood.name, "sigma": None if sigma is None else float(sigma)},
            "step": self.adam.step,
            "random_state": self.rng.bit_generator.state,
            "history": self.history,
            "data": self.data,
        }
        shape = (0, 0, self.model.image_size, self.model.image_size, 3)
        arrays = {"values": values, "m": to_cpu(self.adam.m), "v": to_cpu(self.adam.v),
                  "progress": np.stack(self.progress) if self.progress else np.zeros(shape, np.uint8),
                  "order": self.order.astype(np.int64), "terms": np.reshape(self.terms, (-1, len(TERMS)))}
        if not voices.rank():
            checkpoint.save(path, arrays, info)

    @classmethod
    def resume(cls, path, images, validation_images, settings, data=None, threads=None):
        """A trainer that goes on from the checkpoint at path.

        Raises CheckpointError if there is none, if it was trained on other data, or if it does not fit.
        """
        model, arrays, info = checkpoint.load_training(path)
        trainer = cls(model, images, validation_images, settings, data, threads)
        try:
            if info["data"]["fingerprint"] != trainer.data["fingerprint"]:
                raise CheckpointError(f"{path} was trained on another dataset ({info['data']['source']}) than "
                                      f"{trainer.data['folder']}; give the same --data, or another --out")
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
        if self.likelihood.sigma is not None:
            self.likelihood.sigma = xp.asarray(float(info["likelihood"]["sigma"]))
        if len(arrays["order"]):
            if not np.array_equal(np.sort(arrays["order"]), np.arange(len(self.images))):
                raise ValueError("the order of its epoch is none of the training images")
            self.order, self.terms = arrays["order"], arrays["terms"].tolist()
