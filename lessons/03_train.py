"""Lesson 3: the ELBO, the reparameterization, Adam, and ten epochs of training.

You will learn what a variational autoencoder minimises and why noise does not stop the gradient, see the numbers agree
with loops, train the model, on toy faces by default, on CelebA with --data, and see what it learns first and why.
"""

# %% Settings
import inspect
import math
import sys
import time
from dataclasses import asdict, fields

from tools.common import open_dataset, parse, resumed

import numpy as np

from tools.figures import plot_directions
from tools.ledger import ledger_table
from tools.training import Saver, fit_prior, missing_after_each_epoch, resized, show_progress, training_options
from vae_np import VAE
from vae_np.backend import NAME, to_cpu, to_device
from vae_np.disk.files import hold
from vae_np.errors import InputError
from vae_np.fast import processes, voices
from vae_np.fast.signals import uninterrupted
from vae_np.losses import CalibratedGaussian, Gaussian, kl_divergence
from vae_np.optim import Adam
from vae_np.run.trainer import Trainer
from vae_np.study.diagnostics import warnings
from vae_np.study.metrics import evaluate
from vae_np.train import Settings, Training

parser = training_options(__doc__, "runs/03_train")
args = parse(parser)
processes.world()  # where mpiexec has started several of this program, they meet here
checkpoint_path = args.out / "checkpoint.npz"
if args.resume:
    args = resumed(parser, checkpoint_path)
try:
    settings = Settings(**{field.name: vars(args)[field.name] for field in fields(Settings) if field.name in args})
except InputError as error:
    parser.error(str(error))
dataset = open_dataset(args.data)
print(dataset)

# %% What is minimised
# We would like the model to give real faces a high probability, log p(x). That is an integral over all codes z, which
# nobody can compute. The encoder's q(z | x) = N(mu, std^2) gives a bound that can be:
#
#     log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z))         the evidence lower bound, ELBO
#
# loss = recon + beta * kl is its negative (for beta = 1): how improbable the face is to the decoder, given the code,
# and how many nats the code itself costs. Both are sums over pixels or latents, averaged over the batch.
small = VAE(image_size=16, channels=(4, 8), latent_dim=3, seed=1)
rng = np.random.default_rng(1)
x, eps = rng.random((2, 16, 16, 3), dtype=np.float32), rng.standard_normal((2, 3), dtype=np.float32)
logits, mu, log_var = (to_cpu(array) for array in small.forward(to_device(x), to_device(eps)))
sigma, recon, kl = 0.1, 0.0, 0.0
for n in range(len(x)):
    for target, logit in zip(x[n].ravel().tolist(), logits[n].ravel().tolist(), strict=True):
        mean = 1 / (1 + math.exp(-logit))
        recon += 0.5 * ((target - mean) ** 2 / sigma**2 + math.log(2 * math.pi * sigma**2)) / len(x)
    for m, lv in zip(mu[n].tolist(), log_var[n].tolist(), strict=True):
        kl += 0.5 * (m * m + math.exp(lv) - 1 - lv) / len(x)
package_recon = float(Gaussian(sigma)(to_device(logits), to_device(x))[0])
package_kl = float(kl_divergence(to_device(mu), to_device(log_var))[0])
print(f"by loops: recon {recon:.4f}, kl {kl:.4f}; by the package: recon {package_recon:.4f}, kl {package_kl:.4f}")
assert np.allclose([recon, kl], [package_recon, package_kl], rtol=1e-5)

# %% How much an error costs
# log p(x | z) has to say how probable a face is that is not quite the decoded one. Here every pixel channel is normal
# around the decoded value, with one standard deviation sigma for all. Sigma is the exchange rate of the two terms: a
# squared error costs 1 / (2 sigma^2) nats, and as long as a nat of code saves more than a nat of error, the code says
# more. Nobody need choose it: the best sigma is the root of the mean squared error itself, so it follows the errors.
print(inspect.getsource(CalibratedGaussian.follow))

# %% The reparameterization
# A code is drawn at random, so how can a gradient pass through it? Draw eps from N(0, 1), which depends on nothing, and
# compute z = mu + std * eps: now z is a plain function of mu and std. The encoder's second output is the logarithm of
# the variance, so std = exp(log_var / 2). Libraries have shipped exp(log_var) for it, among them the VAE examples of
# DeZero (examples/vae.py) and numpy-ml (numpy_ml/neural_nets/models/vae.py): bug 1 of lesson 2.
log_var = math.log(4)
z = 1.5 + math.exp(log_var / 2) * rng.standard_normal(100_000)
print(f"mu 1.5 and log_var ln 4 should give mean 1.5 and deviation 2: mean {z.mean():.3f}, deviation {z.std():.3f}")

# %% Adam
# Each parameter's step is the running mean of its gradient, divided by the root of the running mean of its square. A
# gradient that keeps its sign makes steps of about the learning rate, a wavering one less.
print(inspect.getsource(Adam.update))
adam = Adam(to_device(np.zeros(3)), to_device(np.zeros(3)))
for gradient in ([5, -0.01, 3], [5, -0.01, -3], [5, -0.01, 3], [5, -0.01, -3]):
    adam.grads[...] = to_device(np.array(gradient))
    adam.update(learning_rate=0.1)
print(f"four steps of 0.1 against gradients of 5, of -0.01, and of 3 and -3 in turn: {to_cpu(adam.values).round(2)}")

# %% Train
# The algorithm, in vae_np/train.py. Trainer in run/trainer.py is the same, and measures on validation images, which
# are never learned from, saves and resumes.
print(inspect.getsource(Training.steps), inspect.getsource(Training.step), sep="\n")
# Why these defaults: small batches, since ten epochs are few steps; a warm-up of the learning rate, as the first steps
# are wild; a cosine, so that the rate ends near zero, where noise no longer throws the weights about; images that are
# mirrored at random, which makes twice as many of them; beta 1 from the start, for the loss is the ELBO then.
images = dataset.split("train", settings.limit), dataset.split("validation")
lock = None if voices.rank() else hold(args.out)  # two trainings would write over each other's checkpoints
if args.resume:
    trainer = Trainer.resume(checkpoint_path, *images, settings, dataset.description, args.threads)
    print(f"going on after epoch {trainer.epoch} of {settings.epochs}, step {trainer.adam.step:,}")
    if trainer.epoch >= settings.epochs:
        print(f"nothing is left to do; give --epochs {2 * trainer.epoch} to train on")
else:
    model = VAE(dataset.image_size, args.channels, args.latent_dim, seed=settings.seed)
    trainer = Trainer(model, *images, settings, dataset.description, args.threads)
print(f"{trainer.model}\non {NAME}, {trainer.threads} threads, {trainer.steps_per_epoch} steps an epoch, "
      + f"in each of {voices.started()} processes, " * (voices.started() > 0)
      + ", ".join(f"{name} {value}" for name, value in asdict(settings).items()))
saver = Saver(trainer, checkpoint_path, args)
if trainer.history:
    show_progress(args.out, trainer)  # a run that was killed may not have come to it
try:
    with processes.interruptible():
        while trainer.epoch < settings.epochs:
            start = time.perf_counter()
            row = trainer.train_epoch(saver.after_step)
            with uninterrupted():
                saver.save()
                show_progress(args.out, trainer)
            left = (settings.epochs - trainer.epoch) * (time.perf_counter() - start)
            print(f"epoch {row['epoch']:2d}  loss {row['loss']:7.1f}  recon {row['recon']:7.1f}  kl {row['kl']:5.1f}  "
                  f"beta {row['beta']:.2f} | validation: loss {row['val_loss']:7.1f}  recon {row['val_recon']:7.1f}  "
                  f"kl {row['val_kl']:5.1f}  psnr {row['val_psnr']:5.2f} dB | {row['images_per_second']:.0f} images/s, "
                  f"{left / 60:.1f} min left", flush=True)
            for line in warnings(trainer.history, settings, args.latent_dim):
                print(f"warning: {line}", flush=True)
except KeyboardInterrupt as stop:
    saver.stop(stop)
    sys.exit(128 + getattr(stop, "number", 2))
finally:
    if lock:
        lock.release(force=True)  # however it ends: a notebook's program lives on

# %% The ledger
# "Beta 1" says little as long as nobody says whether the reconstruction is summed or averaged, and how much an error
# costs. The same run in the units of others (tools/ledger.py has the derivation), for the validation images:
terms = evaluate(trainer.model, trainer.validation_images, trainer.likelihood)
print(ledger_table(terms, trainer.likelihood, settings.beta, trainer.model.image_size, trainer.model.latent_dim))

# %% A prior that fits
# New faces are decoded from codes that are drawn, and N(0, I) is not where the codes of faces are: they have a shape of
# their own, and ten epochs do not even bring them to its size. So a density is fitted to the codes of training faces,
# and stored with the model, which from now on samples from it; lesson 05 has the story.
processes.leave(trainer.model, args.threads)  # where there are several, the others end here
fit_prior(args.prior, checkpoint_path, trainer.model, images[0], settings.seed)
print(f"{checkpoint_path} now samples from the {args.prior} prior")

# %% What is learned first?
# Small models for small faces: convolutions that see x as it is, that see 4 (x - 1/2), and with a shortcut, as above.
# After each epoch: how much of each principal component is still missing in the reconstructions of held-out faces?
small_faces, held_out, sizes = resized(images[0][:2000], 32), resized(images[1][:500], 32), (32, (16, 32, 64), 64)
models = {"convolutions that see x": VAE(*sizes, centred=False, shortcut=False),
          "convolutions that see 4 (x - 1/2)": VAE(*sizes, shortcut=False), "with a shortcut": VAE(*sizes)}
panels = missing_after_each_epoch(models, small_faces, held_out, epochs=4)
for title, epochs in panels.items():
    print(f"{title}: of the ninth component, {epochs[-1][:9][-1]:.0%} is missing in the end")
plot_directions(args.out / "directions.png", panels)
print(f"{checkpoint_path}, and beside it history.csv, losses.png, progress.png, directions.png\n"
      f"next: python lessons/04_reconstruct.py --checkpoint {checkpoint_path}")

# %% What you should see
# The reconstruction falls quickly, then slowly, while sigma falls with it and makes errors dearer: so KL rises from one
# epoch to the next, since ever more detail is worth its nats. From the seventh epoch on training gets ahead of
# validation, which still improves. In progress.png the first epoch knows hair, skin and background, the third glasses
# and eyes; expressions take until the eighth. Its new faces are a fitted Gaussian's.
#
# directions.png: a share above 1 is an error larger than what the component varies by. Strong directions come first,
# and some are lost for long: the ninth of toy faces, of green against magenta, for all four epochs, since the many
# layers of a deep network have to find it together. Centring helps the others. The shortcut, which is linear as
# principal components are, has the nine strongest within an epoch; weak ones take any model long.
#
# Exercises
# 1. Train with --beta 4 and with --beta 0.25: what happens to KL, PSNR and the samples?
# 2. Train with --limit 500 --epochs 60. When does validation turn upward, and what do the samples look like?
# 3. Give the encoder the true standard deviation where log_var is expected, in vae_np/vae.py. Which test notices first?
