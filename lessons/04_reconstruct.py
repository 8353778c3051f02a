"""Lesson 4: what gets through. Held-out faces, their reconstructions, and what the code costs.

You will learn how to judge a reconstruction (ELBO, PSNR, SSIM), why a reconstruction through mu is smoother than one
through a sampled code, how the model compares with a linear one of the same size, and which dimensions carry anything.
"""

# %% Settings
import json
import math

from tools.common import add_checkpoint, command_line, open_checkpoint, parse, require, spread

import numpy as np
from tqdm import tqdm

from tools.ledger import ledger, ledger_table, sigma_of_weight
from vae_np.disk.files import replacing
from vae_np.losses import likelihood_of
from vae_np.run.command import POSITIVE
from vae_np.study import pictures
from vae_np.study.metrics import evaluate, importance_weighted_bound, psnr, ssim
from vae_np.study.principal_components import PrincipalComponents
from vae_np.train import to_float

parser = command_line(__doc__, "runs/04_reconstruct")
add_checkpoint(parser)
parser.add_argument("--limit", type=POSITIVE, metavar="N", help="the first N held-out images only")
args = parse(parser)
model, info, dataset = open_checkpoint(args.checkpoint, args.data)

# %% Held-out images
# Every figure below is about faces that the model has never seen.
split = dataset.held_out()
held_out = dataset.split(split, args.limit)
print(f"{len(held_out):,} images of the {split} split")

# %% Through mu, and through a sampled code
# The encoder answers a face with a small cloud of codes, N(mu, std^2). Its centre mu gives the cleanest reconstruction;
# a code drawn from the cloud gives what the decoder was trained on. Where the two differ, the code is not sure.
faces = to_float(held_out[spread(8, len(held_out))])
mu, log_var = model.encode(faces)
noise = np.random.default_rng(0).standard_normal(mu.shape, dtype=np.float32)
through_mu, through_z = model.decode(mu), model.decode(mu + np.exp(log_var / 2) * noise)
error = np.abs(faces - through_mu).mean(axis=-1, keepdims=True).repeat(3, axis=-1)
rows = [("held out", faces), ("through mu", through_mu), ("through z", through_z), ("error x 4", 4 * error)]
pictures.save(args.out / "reconstructions.png", pictures.labelled_rows(rows))

# %% PSNR and SSIM
# PSNR compares pixel by pixel: 10 log10(1 / MSE), with the MSE averaged over the pixels of one image. SSIM compares
# local means, variances and correlations, and so minds lost texture more. By hand, for one image and one window:
one, other = faces[0].astype(float), through_mu[0].astype(float)
naive = 10 * math.log10(1 / (sum((a - b) ** 2 for a, b in zip(one.flat, other.flat, strict=True)) / one.size))
print(f"PSNR of the first face: {naive:.4f} dB by a loop, {psnr(faces[:1], through_mu[:1])[0]:.4f} dB by the package")
assert math.isclose(naive, psnr(faces[:1], through_mu[:1])[0], rel_tol=1e-6)

side = min(11, model.image_size)
weights = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / 1.5) ** 2)
window = np.outer(weights, weights)[:, :, None] / weights.sum() ** 2
a, b = one[:side, :side], other[:side, :side]
ma, mb = (window * a).sum((0, 1)), (window * b).sum((0, 1))
va, vb = (window * (a - ma) ** 2).sum((0, 1)), (window * (b - mb) ** 2).sum((0, 1))
cab = (window * (a - ma) * (b - mb)).sum((0, 1))
naive = ((2 * ma * mb + 1e-4) * (2 * cab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean()
package = ssim(a[None], b[None])[0]
print(f"SSIM of its first {side}x{side} pixels: {naive:.6f} from the definition, {package:.6f} by the package")
assert math.isclose(naive, package, rel_tol=1e-9)

# %% The figures
# The ELBO is estimated with one noise vector for each image, by the likelihood that the model was trained with. The
# yardstick is the linear autoencoder of lesson 1 with as many components as the model has latents, fitted on training
# images. It has an unfair advantage: its code is exact, while the VAE's has noise on it and costs only `kl` nats.
likelihood = likelihood_of(**info["likelihood"])
terms = evaluate(model, held_out, likelihood)
train = dataset.split("train")
require(train, 2, "training")
pca = PrincipalComponents.fit(train[spread(10_000, len(train))], min(model.latent_dim, len(train) - 1))
quality = {"vae": [], "pca": []}
for start in tqdm(range(0, len(held_out), 256), desc="reconstructing", leave=False):
    x = to_float(held_out[start : start + 256])
    for name, y in (("vae", model.reconstruct(x)), ("pca", pca.reconstruct(x))):
        quality[name].append(np.stack([psnr(x, y), ssim(x, y)]))
quality = {name: np.concatenate(parts, axis=1).mean(axis=1).tolist() for name, parts in quality.items()}
loss = terms["recon"] + terms["kl"]
print(f"negative ELBO {loss:.1f} nats per image: recon {terms['recon']:.1f} ({likelihood!r}) + kl {terms['kl']:.1f}")
print(f"{'':28s}{'PSNR':>9s}{'SSIM':>8s}")
print(f"{'VAE, through mu':28s}{quality['vae'][0]:6.2f} dB{quality['vae'][1]:8.3f}")
print(f"{f'{len(pca.components)} principal components':28s}{quality['pca'][0]:6.2f} dB{quality['pca'][1]:8.3f}")

# %% How far is the ELBO from the log likelihood?
# Of an image one would like to know log p(x), with p(x) = E p(x | z) over all codes z of the prior. The ELBO is below
# it. For every z, p(x) = p(x | z) p(z) / p(z | x); divide and multiply by q(z | x) and average the logarithm over q:
#
#     log p(x) = E log [p(x | z) p(z) / q(z | x)] + E log [q(z | x) / p(z | x)] = ELBO + KL(q || posterior)
#
# The gap is the price of an encoder that answers at one glance, and with independent Gaussians only. Nobody can compute
# it, but the weights w = p(x | z) p(z) / q(z | x) of codes drawn from q have the mean p(x), and the logarithm of a mean
# of k of them, L_k, is closer to log p(x) the larger k is, from below: L_1 is the ELBO again (Burda, Grosse and
# Salakhutdinov 2016). All of this holds for Bernoulli() as well, though its p(x | z) is no density of grey values. Here
# are a few images only, since every weight takes a pass through the decoder.
few = held_out[:32]
elbo = evaluate(model, few, likelihood)
bounds = {k: importance_weighted_bound(model, few, likelihood, k) for k in (1, 8, 64)}
print(f"the first {len(few)} images, nats per image: ELBO {-elbo['recon'] - elbo['kl']:.1f}; "
      + ", ".join(f"L_{k} {bound:.1f}" for k, bound in bounds.items()))

# %% The ledger: what is a beta of 1?
# Two losses with the same weight on the KL mean different things if one sums the reconstruction over pixels and the
# other averages it, or if they charge another price for an error. The price has a name, sigma: a Gaussian with this
# deviation would charge as many nats for the same errors. And sigma and beta are one knob, since twice the variance
# halves what all errors cost, as a beta of 2 does to them beside the KL (tools/ledger.py has the algebra). Of a
# Gaussian, the bits are those of a lossless code for 8-bit images, if sigma is above 1/255; of Bernoulli(), which takes
# a grey value for the bias of a coin, they are not, and most of its nats are the entropy of these coins, which no model
# can save.
beta, size = info["training"]["beta"], model.image_size
print(ledger_table(terms, likelihood, beta, size, model.latent_dim))

# Published settings on this scale. PyTorch-VAE (models/vanilla_vae.py, configs/vae.yaml) averages the squared error and
# weighs the KL with 0.00025. That sounds as if the KL hardly counted, and is a sigma above 1: an error from black to
# white costs less than half a nat, so fine detail is not worth its code, and pictures blur. The VAE of
# pytorch/examples sums cross-entropy and KL: beta 1 as here. The one of keras.io averages the cross-entropy over
# channels before it sums over pixels: with one channel beta 1, with three it would be a beta of 3.
sigma = sigma_of_weight(0.00025, size)
print(f"mean squared error + 0.00025 KL at {size}x{size} is sigma {sigma:.2f}; black taken for "
      f"white then costs {1 / (2 * sigma**2):.2f} nats")

# %% Which dimensions carry anything?
# A dimension that the decoder ignores costs nothing: mu = 0 and log_var = 0 for every face. Its KL is 0 and it is
# called inactive. What the others cost, in nats, is how much each says about a face.
kl, active = terms["kl_per_dimension"], terms["active_units"]
order = np.argsort(-kl)
print(f"{active} of {model.latent_dim} dimensions are active; the ten that say most carry "
      f"{kl[order[:10]].sum() / kl.sum():.0%} of {kl.sum():.1f} nats")
chart, axes = pictures.figure(width=7)
axes[0, 0].bar(range(model.latent_dim), kl[order])
axes[0, 0].set(title=f"{active} active dimensions of {model.latent_dim}", xlabel="latent dimension, sorted",
               ylabel="KL, nats per image")
pictures.save_figure(args.out / "kl_by_dimension.png", chart)

metrics = {
    "checkpoint": str(args.checkpoint), "split": split, "images": len(held_out),
    "negative_elbo": loss, "recon": terms["recon"], "kl": terms["kl"], "likelihood": info["likelihood"],
    "psnr": quality["vae"][0], "ssim": quality["vae"][1], "active_units": active,
    "pca_components": len(pca.components), "pca_psnr": quality["pca"][0], "pca_ssim": quality["pca"][1],
    "kl_per_dimension": kl[order].tolist(), "ledger": ledger(terms, likelihood, beta, size, model.latent_dim),
}  # fmt: skip
with replacing(args.out / "metrics.json") as partial:
    partial.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
print(f"{args.out}/reconstructions.png, kl_by_dimension.png, metrics.json")

# %% What you should see
# Reconstructions of faces that one recognises: pose, hair, glasses, beards, expressions and the colour of the
# background survive; strands of hair, earrings and the glint in an eye do not. Through z the pictures waver a little
# around the ones through mu. The error is largest at edges and in the eyes. The VAE is 1.2 dB ahead of as many
# principal components on toy faces, 0.8 dB on CelebA, although its code has noise on it: a shortcut does what they do,
# and convolutions what they cannot, such as to move an edge. L_1 is about the ELBO, above or below, since each takes
# one code for an image, and not the same one. L_8 is above both, and L_64 above L_8. Each step takes eight times the
# codes and adds less; log p(x) is higher still. The sigma that would charge as much is the model's own, and 5% below
# the typical error of new faces: it was calibrated on training faces. With --likelihood bernoulli (lesson 3) it is five
# times that: it charges little for errors, which is why it blurs. All 160 dimensions say something, and none says much:
# more of them would say more. With 128, 192 and 256, faces of CelebA came back at 24.3, 25.3 and 26.0 dB. But the
# longer a code, the harder it is to draw one that is a face's (lesson 05).
#
# Exercises
# 1. Draw 10 codes for one face and average their reconstructions. Is the average closer to the face than one of them?
# 2. Set all but the 10 most talkative dimensions of mu to 0 and reconstruct. What is left?
# 3. Evaluate on training images as well (dataset.split("train")). How large is the gap, and what does it tell?
