"""Lesson 5: faces that nobody has.

You will learn to draw new faces from the prior, what temperature does, why the codes of real faces are not quite where
the prior says, four ways to describe where they are, and how to find out whether the model has only memorised.
"""

# %% Settings
import math
import time

from tools.common import SEED, add_checkpoint, command_line, encode_all, open_checkpoint, parse, require, spread

import numpy as np
from tqdm import tqdm

from vae_np.run import checkpoint
from vae_np.study import pictures
from vae_np.study.priors import PRIORS, draw, prior_kind
from vae_np.train import to_float

parser = command_line(__doc__, "runs/05_sample")
add_checkpoint(parser)
parser.add_argument("--prior", choices=PRIORS, help="store this prior in the checkpoint, so that all samples come from "
                    "it; without, samples come from the one that is stored, or from N(0, I)")
parser.add_argument("--seed", type=SEED, default=0, help="seed of the samples and the fits")
args = parse(parser)
model, info, dataset = open_checkpoint(args.checkpoint, args.data)
train, held_out = dataset.split("train"), dataset.split(dataset.held_out())
require(train, 20, "training")

# %% Sampling is decoding noise
# Training pulled the codes of faces towards N(0, I), the prior. So draw a code from the prior and decode it.
rng = np.random.default_rng(args.seed)
noise = rng.standard_normal((48, model.latent_dim), dtype=np.float32)
stored, model.prior = model.prior, None  # N(0, I)
if stored:
    print(f"{args.checkpoint} samples from the {stored.name} prior, as asked for with --prior; --prior standard undoes "
          "that")
samples = model.decode(noise)
assert np.array_equal(samples, model.sample(48, np.random.default_rng(args.seed))), "the same seed, the same faces"
pictures.save(args.out / "standard_samples.png", pictures.grid(samples, 12), scale=2)

# %% Temperature
# Multiply the noise by a temperature below 1 and codes stay nearer to 0, where the mean face is: all become a little
# alike. Above 1 they go where training hardly went. The same noise in every row:
temperatures = (0.4, 0.7, 1.0, 1.3)
rows = [(f"T = {t}", model.sample(10, np.random.default_rng(args.seed), temperature=t)) for t in temperatures]
pictures.save(args.out / "temperatures.png", pictures.labelled_rows(rows))

# %% Are the codes of faces where the prior is?
# The aggregate posterior is the distribution of z when x is any training face: the mixture of all their clouds. If it
# were N(0, I), samples from the prior would be as good as reconstructions. Its mean and covariance are known exactly
# from mu and log_var: covariance of z = covariance of mu + mean of the variances.
mu, log_var = encode_all(model, train[spread(10_000, len(train))], "encoding training faces")
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

chart, axes = pictures.figure(columns=3)
axes[0, 0].hist(np.linalg.norm(z, axis=1), bins=60, density=True, alpha=0.6, label="codes of faces")
lengths = np.linalg.norm(rng.standard_normal((len(z), model.latent_dim)), axis=1)
axes[0, 0].hist(lengths, bins=60, density=True, alpha=0.6, label="N(0, I)")
axes[0, 0].set(title="length of z", xlabel="length", ylabel="density")
axes[0, 1].plot(strengths[::-1], label="codes of faces")
axes[0, 1].axhline(1, linestyle="--", color="black", label="N(0, I)")
axes[0, 1].set(title="variance of z along principal axes", xlabel="axis, sorted", ylabel="variance")

# %% Four priors
# So draw codes from where they are. The decoder stays as it is; only the density that codes are drawn from is fitted.
#   gaussian    N(mean, covariance): noise times the Cholesky factor L, covariance = L L^T, plus the mean
#   mixture     several Gaussians, fitted by expectation-maximisation; vae_np/study/mixture.py derives it
#   two-stage   a second, small VAE that learns the distribution of codes (Dai and Wipf 2019); vae_np/study/two_stage.py
# All are fitted to training codes alone.
priors, seconds = {}, {}
for number, name in enumerate(PRIORS):
    print(f"fitting: {name}", flush=True)
    start = time.perf_counter()
    priors[name] = prior_kind(name).fit(mu, log_var, np.random.default_rng([args.seed, number]))
    seconds[name] = time.perf_counter() - start
by_hand = mean + noise @ np.linalg.cholesky(covariance.astype(np.float64)).T
assert np.allclose(priors["gaussian"].sample(48, np.random.default_rng(args.seed)), by_hand, atol=1e-3)

# The density of a mixture is the weighted sum of its components' densities. For one code, as it is written:
mixture = priors["mixture"]
logs = [component.log_density(z[:1])[0] for component in mixture.components]
densities = [math.exp(log - max(logs)) for log in logs]  # of the largest; else all may be 0
naive = math.log(sum(weight * d for weight, d in zip(mixture.weights, densities, strict=True))) + max(logs)
assert math.isclose(naive, mixture.log_density(z[:1])[0], rel_tol=1e-9)
# What rises is the log likelihood and a penalty for covariances far from that of all codes (study/mixture.py). The
# start, far below, with all components alike but for their means, is left out of the chart.
print(f"expectation-maximisation: {mixture.rise[0]:.2f} nats per code at first, with the penalty, "
      f"{mixture.rise[-1]:.2f} after {len(mixture.rise) - 1} steps")
axes[0, 2].plot(range(1, len(mixture.rise)), mixture.rise[1:], "o-", markersize=3, label="log likelihood + penalty")
axes[0, 2].set(title="expectation-maximisation", xlabel="step", ylabel="nats per code")
for ax in axes[0]:
    ax.legend()
pictures.save_figure(args.out / "aggregate_posterior.png", chart)

# %% Which fits best?
# The one that gives codes of held-out faces the highest density. That is no mere analogy to the loss: its KL term is
# KL(q(z | x) || p(z)) = E log q(z | x) - E log p(z), and only the second part knows the prior. A prior that gains 5
# nats makes the code of a new face 5 nats cheaper, and the ELBO 5 nats higher. The two-stage figure is a lower bound.
held_out_mu, held_out_log_var = encode_all(model, held_out[spread(2_000, len(held_out))], "encoding held-out faces")
unseen, seen = draw(held_out_mu, held_out_log_var, rng), z[spread(2_000, len(z))]
entropy = 0.5 * (1 + math.log(2 * math.pi) + held_out_log_var.astype(np.float64)).sum(axis=1).mean()
print("nats per code    training  held out    KL of held-out codes    seconds to fit")
for name, prior in priors.items():
    density = prior.log_density(unseen).mean()
    print(f"{name:15s}  {prior.log_density(seen).mean():8.2f}  {density:8.2f}  {-entropy - density:22.2f}  "
          f"{seconds[name]:16.1f}")

columns = 10
faces = to_float(held_out[spread(columns, len(held_out))])
rows = [(name, model.decode(prior.sample(columns, np.random.default_rng(args.seed)))) for name, prior in priors.items()]
rows.append(("reconstructed", model.reconstruct(faces)))
pictures.save(args.out / "priors.png", pictures.labelled_rows(rows))

# %% The choice is stored
# With --prior the choice is written into the checkpoint, and model.sample draws from it wherever the checkpoint is
# loaded. It fits this decoder alone: training on moves the codes, and saves a checkpoint without it.
model.prior = stored
if args.prior:
    model.prior = priors[args.prior]
    checkpoint.store_prior(args.checkpoint, model)
    print(f"{args.checkpoint} now samples from the {args.prior} prior")
samples = model.sample(48, np.random.default_rng(args.seed))
pictures.save(args.out / "samples.png", pictures.grid(samples, 12), scale=2)


# %% Memorised?
# If the model had only learned its training faces by heart, a sample would lie right beside one of them. The distance
# is the root of the mean squared difference of a pixel; |a - b|^2 = |a|^2 - 2 a.b + |b|^2 makes all distances to a part
# of the training faces one matrix product.
def nearest(faces):
    faces = faces.reshape(len(faces), -1)
    best, index = np.full(len(faces), np.inf), np.zeros(len(faces), int)
    for start in tqdm(range(0, len(train), 1024), desc="nearest training faces", leave=False):
        part = to_float(train[start : start + 1024]).reshape(-1, faces.shape[1])
        squares = (faces**2).sum(axis=1)[:, None] - 2 * faces @ part.T + (part**2).sum(axis=1)
        closest, where = squares.min(axis=1), squares.argmin(axis=1)
        closer = closest < best
        best[closer], index[closer] = closest[closer], start + where[closer]
    return np.sqrt(np.maximum(best, 0) / faces.shape[1]), index  # rounding may leave a little less than 0


distance, index = nearest(samples[:10])
naive = np.sqrt(np.mean((samples[0] - to_float(train[index[0]])) ** 2))
assert np.isclose(distance[0], naive, rtol=1e-3, atol=1e-3), "the matrix product must give the distance"
assert nearest(to_float(train[:1]))[0][0] < 0.01, "a training face is its own nearest, at distance 0"
rows = [("sample", samples[:10]), ("nearest", np.stack([to_float(train[i]) for i in index]))]
pictures.save(args.out / "nearest.png", pictures.labelled_rows(rows))

# How near is near? Reconstructions of held-out faces, which nobody can have memorised, give the scale.
reconstructions = model.reconstruct(to_float(held_out[spread(50, len(held_out))]))
drawn_from = model.prior.name if model.prior else "standard"
for name, faces in ((f"samples ({drawn_from})", samples), ("reconstructed held-out faces", reconstructions)):
    print(f"{name}: on average {nearest(faces)[0].mean():.3f} from the nearest training face")
print(f"{args.out}/standard_samples.png, temperatures.png, aggregate_posterior.png, priors.png, samples.png, "
      "nearest.png")

# %% What you should see
# Samples that are faces more or less: after ten epochs of toy faces many from N(0, I) are melted, at every temperature:
# a low one fades them towards the mean face, a high one adds contrast. The variances along principal axes stray from 1
# in both directions: the prior and the codes do not match. A Gaussian mends most of that: on toy faces it makes codes
# cheaper by some 30 nats, about the KL divergence above, and far fewer samples are melted. The mixture adds little
# there, and 2 to 7 nats on real faces, whose codes have more shape than a mean and a covariance. The second VAE finds
# next to nothing that the Gaussian did not: its posterior collapses, and its row of pictures is nearly the Gaussian's.
# The nearest training faces are other people. Samples are about as far from them as reconstructions of faces that
# nobody can have memorised, since a blurred picture is not far from any face; a copy would be at a distance near 0.
#
# Exercises
# 1. Fit a Gaussian to the codes of faces that share an attribute (dataset.column("Smiling")) and sample from it.
# 2. Give MixturePrior.fit (study/mixture.py) shrinkage=10, then components=3: what of training and held-out codes?
# 3. Train with --beta 0.2 and come back: how do the mismatch in nats and the samples from the prior change?
