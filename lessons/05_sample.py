"""Lesson 5: faces that nobody has.

You will learn to draw new faces, why N(0, I) is the wrong place to take their codes from and what to do about it, how
to judge samples, for which there is no right answer, and how to find out whether the model has only memorised.
"""

# %% Settings
import math
import time

from tools.common import SEED, add_checkpoint, command_line, encode_all, open_checkpoint, parse, require, spread

import numpy as np

from tools.training import FITTED
from vae_np.run import checkpoint
from vae_np.study import pictures, principal_components
from vae_np.study.judge import judge
from vae_np.study.metrics import frechet_distance
from vae_np.study.priors import PRIORS, draw, prior_kind
from vae_np.train import to_float

parser = command_line(__doc__, "runs/05_sample")
add_checkpoint(parser)
parser.add_argument("--prior", choices=PRIORS, help="store this prior in the checkpoint, so that all samples come from "
                    "it; without, samples come from the one that is stored")
parser.add_argument("--seed", type=SEED, default=0, help="seed of the samples and the fits")
args = parse(parser)
model, info, dataset = open_checkpoint(args.checkpoint, args.data)
train, held_out = dataset.split("train"), dataset.split(dataset.held_out())
require(train, 20, "training")
require(held_out, 4, "held-out")

# %% Sampling is decoding noise
# Training pulled the codes of faces towards N(0, I), the prior. So draw a code from the prior and decode it.
rng = np.random.default_rng(args.seed)
noise = rng.standard_normal((48, model.latent_dim), dtype=np.float32)
stored, model.prior = model.prior, None  # N(0, I)
print(f"{args.checkpoint} samples from the {stored.name if stored else 'standard'} prior")
samples = model.decode(noise)
assert np.array_equal(samples, model.sample(48, np.random.default_rng(args.seed))), "the same seed, the same faces"
pictures.save(args.out / "standard_samples.png", pictures.grid(samples, 12), scale=2)

# %% Are the codes of faces where the prior is?
# The aggregate posterior is the distribution of z when x is any training face: the mixture of all their clouds. If it
# were N(0, I), samples from the prior would be as good as reconstructions. But training pulls only as far as it pays:
# the more codes have to say about faces, the less N(0, I) describes them. Their mean and covariance are known exactly
# from mu and log_var: covariance of z = covariance of mu + mean of the variances.
mu, log_var = encode_all(model, train[spread(FITTED, len(train))], "encoding training faces")
mean = mu.mean(axis=0)
covariance = (mu - mean).T @ (mu - mean) / len(mu) + np.diag(np.exp(log_var).mean(axis=0))

# Naively: average over faces, each with its own cloud. The same, slowly.
naive = np.zeros((model.latent_dim, model.latent_dim))
for m, lv in zip(mu, log_var, strict=True):
    naive += (np.outer(m - mean, m - mean) + np.diag(np.exp(lv))) / len(mu)
assert np.allclose(naive, covariance, atol=1e-3)

strengths = np.linalg.eigvalsh(covariance)
z = draw(mu, log_var, rng)  # a code from each cloud: mu + exp(log_var / 2) * eps
print(f"mean of z: {np.abs(mean).max():.2f} at the most in any dimension (the prior: 0)\n"
      f"variance of z along principal axes: {strengths.min():.2f} to {strengths.max():.2f} (the prior: 1)\n"
      f"length of z: {np.linalg.norm(z, axis=1).mean():.2f}, spread {np.linalg.norm(z, axis=1).std():.2f} (the prior: "
      f"{np.linalg.norm(noise, axis=1).mean():.2f}, spread {np.linalg.norm(noise, axis=1).std():.2f})")
# As one number: the KL divergence to the prior of a Gaussian that has the codes' mean and covariance.
mismatch = 0.5 * (strengths.sum() + mean @ mean - model.latent_dim - np.log(strengths).sum())
print(f"KL(N(mean of z, covariance of z) || N(0, I)): {mismatch:.2f} nats (if the codes filled the prior: 0)")

chart, axes = pictures.figure(columns=2)
axes[0, 0].hist(np.linalg.norm(z, axis=1), bins=60, density=True, alpha=0.6, label="codes of faces")
lengths = np.linalg.norm(rng.standard_normal((len(z), model.latent_dim)), axis=1)
axes[0, 0].hist(lengths, bins=60, density=True, alpha=0.6, label="N(0, I)")
axes[0, 0].set(title="length of z", xlabel="length", ylabel="density")
axes[0, 1].plot(strengths[::-1], label="codes of faces")
axes[0, 1].axhline(1, linestyle="--", color="black", label="N(0, I)")
axes[0, 1].set(title="variance of z along principal axes", xlabel="axis, sorted", ylabel="variance")
for ax in axes[0]:
    ax.legend()
pictures.save_figure(args.out / "aggregate_posterior.png", chart)

# %% Four priors
# So draw codes from where they are. The decoder stays as it is; only the density that codes are drawn from is fitted.
#   gaussian    N(mean, covariance): noise times the Cholesky factor L, covariance = L L^T, plus the mean
#   mixture     several Gaussians, fitted by expectation-maximisation; vae_np/study/mixture.py derives it
#   flow        noise that a network moves to where codes are, a little at a time; vae_np/study/flow.py
# All are fitted to training codes alone. The one that lesson 3 has stored need not be fitted again.
priors, seconds = {}, {}
for number, name in enumerate(PRIORS):
    print(f"fitting: {name}", flush=True)
    start = time.perf_counter()
    if stored and stored.name == name:
        priors[name] = stored
    else:
        priors[name] = prior_kind(name).fit(mu, log_var, np.random.default_rng([args.seed, number]))
    seconds[name] = time.perf_counter() - start

# %% Which describes the codes best?
# The one that gives codes of held-out faces the highest density. That is no mere analogy to the loss: its KL term is
# KL(q(z | x) || p(z)) = E log q(z | x) - E log p(z), and only the second part knows the prior. A prior that gains 5
# nats makes the code of a new face 5 nats cheaper, and the ELBO 5 nats higher. The flow's density is an estimate.
count = min(1000, len(held_out))
faces = held_out[spread(count, len(held_out))]
held_out_mu, held_out_log_var = encode_all(model, faces, "encoding held-out faces")
unseen, seen = draw(held_out_mu, held_out_log_var, rng), z[spread(count, len(z))]
entropy = 0.5 * (1 + math.log(2 * math.pi) + held_out_log_var.astype(np.float64)).sum(axis=1).mean()
print("nats per code    training  held out    KL of held-out codes    seconds to fit")
for name, prior in priors.items():
    density = prior.log_density(unseen).mean()
    print(f"{name:15s}  {prior.log_density(seen).mean():8.2f}  {density:8.2f}  {-entropy - density:22.2f}  "
          f"{seconds[name]:16.1f}")


# %% Which draws the best faces?
# PSNR cannot say, for a new face has no original. Three judges that can:
#   area       A network learns to tell decoded samples from decoded codes of held-out faces: the area under its ROC
#              curve, on pictures that it has not seen. 0.5: it cannot tell; 1: it always can (vae_np/study/judge.py).
#   Frechet    The distance of two Gaussians, of the mean and covariance of both sets' principal components.
#   nearest    How far a code is from the nearest code of a training face. A prior that gave training codes back would
#              deceive the other two, and stand out here, far below the held-out faces.
def nearest(vectors, parts):
    """For each of vectors (N, D), the distance to the nearest row of parts, each (M, D), and which that is of all."""
    best, index, start = np.full(len(vectors), np.inf), np.zeros(len(vectors), int), 0
    for part in parts:  # |a - b|^2 = |a|^2 - 2 a.b + |b|^2, all of a part in one product
        squares = (vectors**2).sum(axis=1)[:, None] - 2 * vectors @ part.T + (part**2).sum(axis=1)
        closest, where = squares.min(axis=1), squares.argmin(axis=1)
        closer = closest < best
        best[closer], index[closer] = closest[closer], start + where[closer]
        start += len(part)
    return np.sqrt(np.maximum(best, 0)), index  # rounding may leave a little less than 0


some = train[spread(5_000, len(train))]
pca = principal_components.PrincipalComponents.fit(some, min(64, len(some) - 1))
decoded = model.decode(unseen)
again = spread(count, len(mu))  # what a prior would draw that had learned training faces by heart
drawn = {"training faces": draw(mu[again], log_var[again], rng)}
drawn |= {name: prior.sample(count, np.random.default_rng([args.seed, 1])) for name, prior in priors.items()}
print(f"{f'{count:,} codes of':20s}  area under the curve    Frechet distance    nearest training code (held-out "
      f"faces: {np.median(nearest(unseen, [z])[0]):.2f})")
for name, codes in drawn.items():
    y = model.decode(codes)
    area, error = judge(decoded, y, args.seed)
    distance = frechet_distance(pca.encode(decoded), pca.encode(y))
    print(f"{name:20s}{area:14.3f} +- {error:.3f}{distance:20.2f}{np.median(nearest(codes, [z])[0]):25.2f}", flush=True)

columns = 10
rows = [(name, model.decode(prior.sample(columns, np.random.default_rng(args.seed)))) for name, prior in priors.items()]
rows.append(("reconstructed", model.reconstruct(to_float(held_out[spread(columns, len(held_out))]))))
pictures.save(args.out / "priors.png", pictures.labelled_rows(rows))

# %% The choice is stored
# Lesson 3 has stored a prior in the checkpoint, and --prior stores another; model.sample draws from it wherever the
# checkpoint is loaded. It fits this decoder alone: training on moves the codes, and saves a checkpoint without it.
model.prior = stored
if args.prior:
    model.prior = priors[args.prior]
    checkpoint.store_prior(args.checkpoint, model)
    print(f"{args.checkpoint} now samples from the {args.prior} prior")
samples = model.sample(48, np.random.default_rng(args.seed))
pictures.save(args.out / "samples.png", pictures.grid(samples, 12), scale=2)

# Below a temperature of 1, noise is shorter: faces become alike. Above, it goes where training hardly went.
rows = [(f"T = {t}", model.sample(10, np.random.default_rng(args.seed), temperature=t)) for t in (0.4, 0.7, 1.0, 1.3)]
pictures.save(args.out / "temperatures.png", pictures.labelled_rows(rows))

# %% Memorised?
# And in pixels: is a sample a face that was in the training set? The root of the mean squared difference of a pixel
# tells how far the nearest one is; reconstructions of held-out faces, which nobody can have memorised, give the scale.
reconstructions = model.reconstruct(to_float(held_out[spread(48, len(held_out))]))
everybody = np.concatenate([samples, reconstructions, to_float(train[:1])]).reshape(-1, samples[0].size)
distance, index = nearest(everybody, principal_components.rows(train))
distance /= math.sqrt(samples[0].size)
print(f"samples ({model.prior.name if model.prior else 'standard'}): on average {distance[: len(samples)].mean():.3f} "
      f"from the nearest training face; reconstructed held-out faces: {distance[len(samples) : -1].mean():.3f}")
assert distance[-1] < 0.01, "a training face is its own nearest, at distance 0"
naive = np.sqrt(np.mean((samples[0] - to_float(train[index[0]])) ** 2))
assert np.isclose(distance[0], naive, rtol=1e-3, atol=1e-3), "the matrix product must give the distance"
rows = [("sample", samples[:10]), ("nearest", to_float(train[index[:10]]))]
pictures.save(args.out / "nearest.png", pictures.labelled_rows(rows))
print(f"{args.out}/standard_samples.png, aggregate_posterior.png, priors.png, samples.png, temperatures.png, "
      "nearest.png")

# %% What you should see
# Samples from N(0, I) are a jumble: nearly all of its draws lie where no code of a face does. A Gaussian with the
# codes' mean and covariance makes the code of a toy face 155 nats cheaper and draws faces, some of them with the hair
# or the glasses of two people at once; on top of it the mixture gains 17 nats, the flow 56. Its faces have fewer such
# accidents, and less variety than real ones: few hats, buns and expressions. On CelebA, whose codes are more like a
# Gaussian's, mixture and flow gain 10 and 13. The judge agrees, and is severe: of the toy faces' N(0, I) it is always
# right, of the Gaussian its area is 0.89, of the mixture 0.82, of the flow 0.80 (CelebA: 1.00, 0.75, 0.69, 0.65). The
# Frechet distance knows mean and covariance only: it finds no fault with what has both, and one with the flow, whose
# codes spread a tenth too little. No prior has learned codes by heart: codes of training faces have a neighbour ten
# times as near. And in pixels samples are as far from the nearest training face as reconstructions of held-out faces
# are.
#
# Exercises
# 1. Fit a Gaussian to the codes of faces that share an attribute (dataset.column("Smiling")) and sample from it.
# 2. Give MixturePrior.fit (study/mixture.py) shrinkage=10, then components=3: what of training and held-out codes?
# 3. Two stages (Dai and Wipf 2019): train a second, small VAE of dense layers on whitened codes, and draw faces by
#    noise -> its decoder -> code -> face. What does its KL term come to, and what does it gain on the Gaussian?
