"""Lesson 8: what the weight of the KL divergence does, on small models: rate, distortion, collapse and its cures.

You will learn to place every setting on one plane, that beta and the sigma of a pixel are one knob, why a loss that is
averaged over pixels collapses, what warm-up, cycles, free bits and a calibrated sigma do about it, and what codes know.
"""

# %% Settings
import math
import time

from tools.common import add_data, command_line, encode_all, open_dataset, parse, require

import numpy as np

from tools import objectives
from vae_np import VAE
from vae_np.backend import to_cpu, to_device
from vae_np.losses import Gaussian
from vae_np.run.command import POSITIVE
from vae_np.run.trainer import Trainer
from vae_np.study import pictures
from vae_np.study.factors import linear_r_squared, load_factors
from vae_np.study.metrics import active_units, evaluate, kl_of_codes, psnr
from vae_np.study.principal_components import PrincipalComponents
from vae_np.study.priors import GaussianPrior, draw
from vae_np.train import Settings, to_float

parser = command_line(__doc__, "runs/08_objectives")
add_data(parser)
parser.add_argument("--epochs", type=POSITIVE, default=6, help="epochs of each of 14 models; the text is about 6")
parser.add_argument("--limit", type=POSITIVE, default=3000, metavar="N", help="the first N training images only")
parser.add_argument("--latent-dim", type=POSITIVE, default=32, help="numbers in the code of a face")
parser.add_argument("--channels", type=POSITIVE, nargs="+", default=[16, 32, 64], help="channels of the encoder")
args = parse(parser)
full = open_dataset(args.data)
SIGMA = 1 / 8  # of a pixel's grey value: the yardstick of this lesson


# %% Small faces
# 14 models in a few minutes: the faces are made small, by averaging blocks of pixels, and kept in memory.
split = full.held_out()
train, validation, held_out = (objectives.small_faces(full.split(name, count)) for name, count in (
    ("train", args.limit), ("validation", 64), (split, 1000)))
require(train, args.latent_dim + 1, "training")
require(held_out, 6, "held-out")
size, pixels = train.shape[1], train[0].size
print(f"{full}\n{len(train):,} training images and {len(held_out):,} of the {split} split, at {size}x{size}")

# %% One knob
# A Gaussian with deviation sigma gives recon = error / (2 sigma^2) + constant, where error is the squared error summed
# over an image. So recon + beta KL, times sigma^2, is error / 2 + beta sigma^2 KL + constant: only beta sigma^2
# matters. beta 4 at sigma 1/8 and beta 1 at sigma 1/4 want the same model. Their gradients differ by the factor 4, to
# the last bit, since 4 is a power of two; and Adam divides by the size of the gradient.
model = VAE(size, args.channels, args.latent_dim, seed=0)
x = to_device(to_float(train[:16]))
eps = to_device(np.random.default_rng(0).standard_normal((len(x), args.latent_dim), dtype=np.float32))
model.loss_and_gradient(x, eps, Gaussian(SIGMA), beta=4)
gradient = to_cpu(model.grads).copy()
model.loss_and_gradient(x, eps, Gaussian(2 * SIGMA), beta=1)
assert np.array_equal(gradient, 4 * to_cpu(model.grads))
print(f"beta 4, sigma {SIGMA} and beta 1, sigma {2 * SIGMA}: all {gradient.size:,} derivatives differ by 4 exactly")

# %% Fourteen objectives
# sigma is 1/8 where nothing else is said, and beta rises from 0 over the first epoch, but in "no warm-up". Two of them
# are often met: error + KL, the squared error summed over the pixels, is beta 32 here, for 1 / (2 sigma^2) = 32. The
# squared error averaged over the pixels, plus KL, looks alike and weighs KL by as much more as an image has numbers.
# It is the same as sigma = sqrt(numbers / 2) and beta 1: a pixel that may be anything.
MEAN = {"sigma": math.sqrt(pixels / 2)}
HALF, CYCLES = {"beta_warmup_epochs": args.epochs / 2}, {"beta_cycles": 4}
RUNS = [
    ("beta 1/4", {"beta": 0.25}),
    ("beta 1", {}),
    ("beta 4", {"beta": 4}),
    ("beta 1, sigma 1/4", {"sigma": 0.25}),
    ("beta 32, summed error", {"beta": 32}),
    ("beta 256", {"beta": 256}),
    ("beta 256, no warm-up", {"beta": 256, "beta_warmup_epochs": 0}),
    ("beta 256, 4 cycles", {"beta": 256} | CYCLES),
    ("Bernoulli", {"likelihood": "bernoulli", "sigma": None}),
    ("averaged error", MEAN),
    ("averaged, long warm-up", MEAN | HALF),
    ("averaged, 4 cycles", MEAN | CYCLES),
    ("averaged, free bits", MEAN | {"free_bits": 0.5}),
    ("sigma calibrated", {"likelihood": "calibrated", "sigma": None}),
]

# %% Rate and distortion
# All models are judged on held-out faces with one ruler, whatever they were trained with. The rate R is KL: what a code
# costs. The distortion D is the squared error of a reconstruction through a sampled code, summed over the pixels,
# divided by 2 sigma^2 for sigma = 1/8: nats again, 0 for a perfect picture. R + D is the negative ELBO of beta 1 but
# for a constant (Alemi et al. 2018). Negative ELBOs of other likelihoods are no such ruler: Bernoulli's recon is not
# even the density of a picture. Where faces come with the factors that they were drawn from: how well does a linear map
# of mu predict each (R^2)?
factors = load_factors(full)
if factors is None:
    print(f"{full.folder} does not know the factors of its faces: no R^2")
else:
    names, values = factors
    train_factors, test_factors = (values[full.splits[name]][: len(part)] for name, part in (
        ("train", train), (split, held_out)))


def judge(model):
    """What there is to say about a model, as a dictionary."""
    x = to_float(held_out)
    mu, log_var = encode_all(model, held_out)
    z = draw(mu, log_var, np.random.default_rng(0))
    kl, y = kl_of_codes(mu, log_var), model.decode(z)
    row = {"R": kl.sum(), "D": np.square(x - y).sum(axis=(1, 2, 3)).mean() / (2 * SIGMA**2),
           "psnr": psnr(x, model.decode(mu)).mean(), "kl": np.sort(kl)[::-1], "active": active_units(mu).sum(),
           "r2": np.full(1, np.nan), "faces": y[:6], "standard": model.sample(6, np.random.default_rng(1))}
    train_mu, train_log_var = encode_all(model, train)
    model.prior = GaussianPrior.fit(train_mu, train_log_var, None)  # lesson 5
    row["samples"] = model.sample(6, np.random.default_rng(1))
    if factors is not None:
        row["r2"] = linear_r_squared(train_mu, train_factors, mu, test_factors)
    return row


rows, start = [], time.perf_counter()
print("beta: at sigma 1/8, the same weight of KL beside the same errors; R^2: the mean over the factors\n"
      f"{'':27s}{'beta':>6s}{'R':>7s}{'D':>7s}{'R + D':>7s}{'PSNR':>9s}{'active':>7s}{'R^2':>7s}")
for number, (name, choice) in enumerate(RUNS, start=1):
    settings = Settings(**({"epochs": args.epochs, "likelihood": "gaussian", "sigma": SIGMA, "learning_rate": 3e-3,
                            "beta_warmup_epochs": 1} | choice))
    model = VAE(size, args.channels, args.latent_dim, seed=0)
    trainer = Trainer(model, train, validation, settings)
    while trainer.epoch < settings.epochs:
        trainer.train_epoch()
    row = judge(model) | {"name": name, "slope": None}
    if trainer.likelihood.sigma is not None:
        row["slope"] = settings.beta * (float(trainer.likelihood.sigma) / SIGMA) ** 2  # what beta would be at sigma 1/8
    rows.append(row)
    weight = "-" if row["slope"] is None else f"{row['slope']:.5g}"
    print(f"{number:2d} {name:24s}{weight:>6s}{row['R']:7.1f}{row['D']:7.0f}{row['R'] + row['D']:7.0f}"
          f"{row['psnr']:6.2f} dB{row['active']:7d}{objectives.mean(row['r2']):7.3f}"
          f"   {(len(RUNS) / number - 1) * (time.perf_counter() - start) / 60:.1f} min left", flush=True)

# The same by the package, with other noise: recon of a Gaussian without its constant.
constant = pixels * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
assert math.isclose(evaluate(model, held_out, Gaussian(SIGMA))["recon"] - constant, row["D"], rel_tol=0.05)

# %% What the codes know
# Factors that move many pixels are told, those of a few pixels are not worth their nats.
if factors is not None:
    order = [k for k in np.argsort(-row["r2"]) if np.isfinite(row["r2"][k])]
    for words, part in (("best", order[:6]), ("least", order[-6:])):
        print(f"{row['name']} tells {words}, by R^2: " + ", ".join(f"{names[k]} {row['r2'][k]:.2f}" for k in part))

# %% What a linear code could do
# A linear encoder and decoder of Gaussian faces can be worked out: along a principal component of variance v, a code
# that lets through an error t costs log(v / t) / 2 nats, and the best plan has the same t along all components with
# v > t, and says nothing of the others (reverse water-filling: Cover and Thomas 2006, section 10.3). For a VAE,
# t = beta sigma^2 (Lucas et al. 2019): more than the largest v, and all of it collapses.
variances = PrincipalComponents.fit(train, args.latent_dim).variances
beyond = to_float(train).var(axis=0, dtype=np.float64).sum() - variances.sum()
weights = {"beta 1": SIGMA**2, "beta 32": 0.5, "beta 256": 4, "averaged": MEAN["sigma"] ** 2}
print(f"components with a variance above beta sigma^2, of {args.latent_dim}: "
      + ", ".join(f"{name}: {(variances > t).sum()}" for name, t in weights.items()))

# %% The plane
# A point is a model; beside it are its reconstruction of a held-out face, through a sampled code, and a sample from a
# Gaussian fitted to its codes. An orange line, curved by the axes, joins what the training of a model sees as equally
# good: D + beta R is constant. beta says how much distortion another nat of code has to save.
curve = np.array([[0.5 * np.log(variances[variances > t] / t).sum(), beyond + np.minimum(variances, t).sum()]
                  for t in np.geomspace(SIGMA**2 / 4, variances.max(), 60)]).T
curve[1] /= 2 * SIGMA**2
objectives.draw_plane(args.out / "plane.png", rows, curve, SIGMA)

# %% Collapse, by dimension
chosen = ("beta 1", "averaged error", "averaged, free bits", "sigma calibrated")
objectives.draw_kl(args.out / "kl_by_dimension.png", [row for row in rows if row["name"] in chosen])
sheet = [("held out | new: Gaussian | N(0, I)", held_out[:6])]
sheet += [(f"{number} {row['name']}", *(row[kind] for kind in ("faces", "samples", "standard")))
          for number, row in enumerate(rows, start=1)]
pictures.save(args.out / "pictures.png", pictures.labelled_rows(sheet))
print(f"{args.out}/plane.png, kl_by_dimension.png, pictures.png")

# %% What you should see
# Rows 3 and 4 are one model but for rounding, which grows as they train. As beta rises from 1/4 to 256, R falls from
# 110 nats to 3 and pictures blur; reconstructions like a high rate, samples from N(0, I) a low one: those of beta 1 are
# a jumble, of beta 256 vague. Bernoulli() is between beta 4 and 32.
#
# The averaged error collapses: R is 0, and everybody gets one face. No component is worth its nats there, so this is
# the optimum, not an accident of training, and nothing that ends at the same weight can help: neither warm-up nor
# cycles do. Another weight does: sum instead of averaging (row 5), or calibrate sigma (row 14). Free bits move the
# optimum, for 16 nats are free, of which 8 are used. Warm-up is for decoders that can do without a code, such as those
# of text (Bowman et al. 2016); here its lack costs little.
#
# After six epochs none is at its optimum. Calibrated wants what beta 1/4 wants, and is far ahead of it: as errors fall,
# its sigma falls and its gradients stay as large as they were, while those of a fixed sigma shrink, and Adam's v
# (lesson 3) remembers the large ones of the first steps for a thousand more. The dashed line, fitted to training faces,
# is ahead of all.
#
# Exercises
# 1. Give the averaged error free bits of 4. What do they buy, and what does a sample look like?
# 2. Train on 16 epochs (--epochs 16). Which points move towards the dashed line, and does beta 1 catch up?
# 3. In `judge`, multiply mu (of train, too) by one random rotation: R^2 stays as it is. Then predict each factor from
#    one latent alone, the best for it (mu[:, [j]]), before the rotation and after: has any factor a latent of its own?
