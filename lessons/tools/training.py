"""Lesson 3's options, and what it does beside training: pictures of the progress, and a prior in the checkpoint."""

import argparse
import shlex
import sys

from tools.common import SEED, add_data, command_line, encode_all, set_aside, spread

import numpy as np
from PIL import Image

from tools.figures import plot_losses, write_history
from vae_np.fast import processes, voices
from vae_np.fast.cores import one_blas_thread
from vae_np.fast.signals import Interrupted
from vae_np.losses import LIKELIHOODS
from vae_np.run import checkpoint
from vae_np.run.command import POSITIVE, threads
from vae_np.run.trainer import LOOK
from vae_np.study import pictures
from vae_np.study.principal_components import PrincipalComponents
from vae_np.study.priors import PRIORS, prior_kind
from vae_np.train import Settings, Training, to_float

FITTED = 20_000  # training faces at the most whose codes a prior is fitted to


def training_options(lesson_doc, out):
    """The parser of lesson 3; the names of most options are those of vae_np.train.Settings."""
    default, parser = Settings(), command_line(lesson_doc, out)
    add_data(parser)
    parser.add_argument("--epochs", type=int, default=default.epochs, help="times through the training images")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="images in a step")
    parser.add_argument("--latent-dim", type=int, default=160, help="numbers in the code of a face")
    parser.add_argument("--channels", type=int, nargs="+", default=[24, 48, 96, 192],
                        help="channels of the encoder's convolutions")
    parser.add_argument("--likelihood", default=default.likelihood, choices=LIKELIHOODS,
                        help="distribution of a pixel channel, given the code")
    parser.add_argument("--sigma", type=float, help="deviation of the gaussian likelihood (0.1 if not given)")
    parser.add_argument("--beta", type=float, default=default.beta, help="weight of the KL divergence")
    parser.add_argument("--beta-warmup", type=float, default=default.beta_warmup_epochs, metavar="EPOCHS",
                        dest="beta_warmup_epochs", help="epochs in which beta rises from 0")
    parser.add_argument("--beta-cycles", type=int, default=default.beta_cycles, metavar="N",
                        help="let beta rise N times over the training, instead of a warm-up")
    parser.add_argument("--free-bits", type=float, default=default.free_bits, metavar="NATS",
                        help="nats that each latent may cost for nothing")
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=default.mirror,
                        help="mirror each training image, or not, at random")
    parser.add_argument("--lr", type=float, default=default.learning_rate, dest="learning_rate",
                        help="peak of the learning rate")
    parser.add_argument("--prior", default="flow", choices=PRIORS,
                        help="what is fitted to the codes at the end, to draw new faces from; standard is N(0, I)")
    parser.add_argument("--seed", type=SEED, default=default.seed,
                        help="seed of the weights, the noise and the shuffle")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N training images only")
    parser.add_argument("--threads", type=threads, metavar="N",
                        help="worker threads of each process (one for each core that the system and OMP_NUM_THREADS "
                             "allow, of which the processes of a machine have a share each)")
    parser.add_argument("--save-every", type=POSITIVE, metavar="STEPS",
                        help="save within epochs, too, not only after each")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser


class Saver:
    """What saves a training to a checkpoint, and says how to go on with it."""

    def __init__(self, trainer, path, args):
        self.trainer, self.path, self.every, self.is_ours = trainer, path, args.save_every, False
        self.go_on = (f"mpiexec -n {voices.started()} " * (voices.started() > 0)
                      + f"python lessons/03_train.py --resume --out {shlex.quote(str(args.out))} --prior {args.prior}"
                      + f" --save-every {self.every}" * bool(self.every))
        if args.resume:
            self.own()

    def own(self):
        """From now on, the checkpoint is that of this training."""
        self.is_ours = True
        voices.advise(self.go_on)

    def save(self):
        """Save, and first set aside the checkpoint of an earlier run, only now that there is another in its place."""
        if not self.is_ours:
            set_aside(self.path)
        self.trainer.save(self.path)
        if not self.is_ours:
            self.own()

    def after_step(self):
        """Save after every so many steps, if that was asked for."""
        if self.every and self.trainer.adam.step % self.every == 0:
            self.save()

    def stop(self, reason):
        """Save after Ctrl-C or SIGTERM, and say how to go on."""
        complete = isinstance(reason, Interrupted)  # a second Ctrl-C does not wait for the end of the step
        if complete:
            self.save()
        end = f"{self.path} holds what was done; go on with: {self.go_on}" if self.is_ours else "nothing was saved"
        print(f"interrupted{getattr(reason, 'source', '')}: {end}", file=sys.stderr)
        if complete:
            processes.leave(self.trainer.model)


def show_progress(out, trainer):
    """Write history.csv, losses.png and progress.png into the folder `out`; of several processes the first does."""
    if voices.rank():
        return
    write_history(out / "history.csv", trainer.history)
    plot_losses(out / "losses.png", trainer.history)
    faces = to_float(trainer.validation_images[:LOOK])
    rows = [(f"epoch {epoch}", *np.split(both, [len(faces)])) for epoch, both in enumerate(trainer.progress, start=1)]
    pictures.save(out / "progress.png", pictures.labelled_rows([("held out | new", faces), *rows], scale=1))


def fit_prior(name, path, model, images, seed):
    """Fit the prior of this name to the codes of training images, and store it in the model's checkpoint."""
    mu, log_var = encode_all(model, images[spread(FITTED, len(images))], "encoding")
    model.prior = prior_kind(name).fit(mu, log_var, np.random.default_rng([seed, 2]))
    checkpoint.store_prior(path, model)


def resized(images, size):
    """uint8 images (N, S, S, 3) as (N, size, size, 3)."""
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX)) for image in images])


def missing_after_each_epoch(models, images, held_out, epochs):
    """Train each of {title: model} on uint8 images, and look at held-out ones after each epoch: {title: [(K,), ...]}.

    Of each principal component's variance, the share that errors of the reconstructions have; K is 64 at the most.
    """
    with one_blas_thread():  # on images as small, more take longer
        components = PrincipalComponents.fit(images, min(64, images[0].size))
        x, missing = to_float(held_out), {title: [] for title in models}
        codes = components.encode(x)
        for title, model in models.items():
            training = Training(model, images, Settings(epochs=epochs))
            for _ in range(epochs):
                for _ in training.steps():
                    pass
                errors = components.encode(model.reconstruct(x)) - codes
                missing[title].append((errors**2).mean(axis=0) / (codes**2).mean(axis=0))
    return missing
