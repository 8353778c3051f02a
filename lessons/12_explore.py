"""Lesson 12: a face under your hands: a trained model as one file for everybody, without Python.

You will learn what a decoder needs outside of this package, what half the bits cost, and why a slider along one latent
may say little where one along a direction says much; and you will have a page to play with, and weights to pass on.
"""

# %% Settings
import copy
import webbrowser

from tools.common import add_checkpoint, command_line, encode_all, load_trained, open_checkpoint, parse, require, spread

import numpy as np

from tools.explorer import Numbers, as_png, described, described_prior, write_page
from vae_np.backend import to_cpu, to_device
from vae_np.run import checkpoint
from vae_np.study import pictures
from vae_np.study.metrics import kl_of_codes, psnr
from vae_np.train import to_float

parser = command_line(__doc__, "runs/12_explore")
add_checkpoint(parser)
parser.add_argument("--open", action="store_true", help="open the page in the browser")
args = parse(parser)
model, info, dataset = open_checkpoint(args.checkpoint, args.data)
held_out = dataset.split(dataset.held_out())
require(dataset.split("train"), 20, "training")
require(held_out, 2, "held-out")
some = spread(10_000, len(dataset.split("train")))
mu, _ = encode_all(model, dataset.split("train")[some])
codes, log_var = encode_all(model, held_out)

# %% What a decoder needs
# A list of what to do, and the numbers to do it with. The list is short: a page has it as JSON. The numbers lie one
# after the other, and the list says where each weight begins and ends.
numbers = Numbers()
decoder = [[described(layer, numbers) for layer in path.layers] for path in model.decoder.paths]
for path in decoder:
    print(" > ".join(layer["name"] for layer in path))

# Whoever reads it needs a dot product, a comparison and some loops. What follows does with arrays what 150 lines of
# JavaScript do in explorer/template.html, for one code: a transposed convolution multiplies each pixel by all kernels,
# and adds them into the output, `stride` pixels apart, with a border that is cut off in the end.
flat = np.frombuffer(numbers.bytes(), "<f2").astype(np.float32)


def number(where):
    """The numbers from at to end."""
    return flat[where["at"] : where["end"]]


def run(layer, x):
    """What one layer makes of x: a code, or an image (S, S, C)."""
    if layer["name"] == "Dense":
        return number(layer["weight"]).reshape(-1, len(x)) @ x + number(layer["bias"])
    if layer["name"] == "LeakyReLU":
        return np.maximum(x, layer["slope"] * x)
    if layer["name"] == "Reshape":
        return x.reshape(layer["side"], layer["side"], layer["channels"])
    if layer["name"] == "Enlarge":
        places = np.clip((np.arange(len(x) * layer["factor"]) + 0.5) / layer["factor"] - 0.5, 0, len(x) - 1)
        share = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(len(x))))
        return np.einsum("ih,jw,hwc->ijc", share, share, x)
    k, s, p = layer["kernel"], layer["stride"], layer["padding"]
    scaled = (x @ number(layer["weight"]).reshape(-1, x.shape[-1]).T).reshape(*x.shape[:2], k, k, -1)
    y = np.zeros(((len(x) - 1) * s + k, (len(x) - 1) * s + k, layer["outputs"]))
    for i in range(len(x)):
        for j in range(len(x)):
            y[i * s : i * s + k, j * s : j * s + k] += scaled[i, j]
    return y[p : len(y) - p, p : len(y) - p] + number(layer["bias"])


logits = 0
for path in decoder:
    x = codes[0]
    for layer in path:
        x = run(layer, x)
    logits = logits + x
face = 1 / (1 + np.exp(-logits))
largest = 255 * np.abs(face - model.decode(codes[:1])[0]).max()
print(f"by this list and these numbers: at most {largest:.2f} of 255 grey levels from the model's own picture")
assert largest < 1

# %% Half the bits
# The numbers above were float16 already: 1 bit for the sign, 5 for the exponent, 10 for what follows the leading 1,
# which is not written. That is 11 significant bits, 3 decimal digits, from 6e-5 to 65,504. Each weight is wrong by up
# to one part in 2,000, at random, and a sum of hundreds of such products by less. How many bits does a face take? (The
# model of --pretrained is stored so: its first two rows are one.)
faces = to_float(held_out)
rounded = copy.deepcopy(model)
values = to_cpu(model.values)
mantissas, exponents = np.frexp(values)
print(f"{values.size:,} parameters, {len(held_out):,} held-out faces, through mu\n"
      f"{'':10s}{'megabytes':>12s}{'PSNR':>12s}")
ways = {"float32": values, "float16": values.astype(np.float16).astype(np.float32)}
ways |= {f"{n} bits": np.ldexp(np.round(mantissas * 2**n) / 2**n, exponents) for n in (8, 6, 4, 3)}
for name, kept in ways.items():
    rounded.values[...] = to_device(kept)
    size = {"float32": 4, "float16": 2}.get(name) or (1 + 5 + int(name.split()[0]) - 1) / 8  # as float16 counts
    quality = psnr(faces, rounded.reconstruct(faces)).mean()
    print(f"{name:>10s}{size * values.size / 1e6:12.1f}{quality:9.3f} dB", flush=True)

# %% One latent, or a direction?
# To the decoder no dimension is better than any other direction: turn all codes, and the layers that read them, and it
# draws the same pictures, and N(0, I) is the same, too. So what a face is made of may lie across all dimensions. Where
# the codes of faces vary most is another question, and has an answer: the principal axes of their covariance. How far
# does the picture change, in grey levels of 255 (root mean square), where a code moves by one standard deviation?
center = mu.mean(axis=0)
variances, axes = np.linalg.eigh(np.cov(mu.T.astype(np.float64)))
axes = (axes * np.sqrt(variances.clip(0))).T[::-1].astype(np.float32)  # the first varies most; each one deviation long
latents = np.diag(mu.std(axis=0))[np.argsort(-kl_of_codes(codes, log_var))]  # the first says most of a face


def change(direction):
    """By how much 100 held-out pictures change, when their codes move along it."""
    some = codes[:100]
    return 255 * np.sqrt(np.mean((model.decode(some + direction) - model.decode(some - direction)) ** 2)) / 2


share = np.cumsum(variances[::-1]) / variances.sum()
for name, rows in (("latent", latents), ("axis", axes)):
    shown = [k for k in (0, 1, 2, 9, len(rows) // 2, len(rows) - 1) if k < len(rows)]
    print(f"{name:8s}" + "".join(f"{k + 1:>8d}" for k in shown) + "\n" + " " * 8
          + "".join(f"{change(rows[k]):8.1f}" for k in shown) + "   grey levels for one deviation", flush=True)
print(f"of the variance of codes, the first ten axes have {share[min(9, len(share) - 1)]:.0%}")

# Attributes have directions by least squares, all at once, so that each is what one changes while the others stay as
# they are (lesson 07).
answers = dataset.attributes[dataset.splits["train"]][some]
usable = np.flatnonzero(np.minimum(answers.sum(axis=0), (~answers).sum(axis=0)) >= 20)
a = answers[:, usable].astype(np.float64)
directions = np.linalg.lstsq(a - a.mean(axis=0), mu - center, rcond=None)[0].astype(np.float32) if len(usable) else []
names = [dataset.attribute_names[k] for k in usable]

shown = [(f"latent {k + 1}", latents[k], 3) for k in range(min(2, len(latents)))]
shown += [(f"axis {k + 1}", axes[k], 3) for k in range(min(2, len(axes)))]
shown += [(names[k], directions[k], 2) for k in range(len(names)) if names[k] in ("Eyeglasses", "Male")]
rows = [(f"{name}\n{-limit} ... {limit}",
         model.decode(codes[1] + np.linspace(-limit, limit, 9, dtype=np.float32)[:, None] * direction))
        for name, direction, limit in shown]
pictures.save(args.out / "directions.png", pictures.labelled_rows(rows))

# %% A page, and weights to pass on
# Of the dataset the page gets eight held-out faces to start from, but of photographs only where --data asks for them.
is_drawn = dataset.info["source"] == "toy faces"
chosen = spread(8, len(held_out)) if is_drawn or args.data else []
notice = "" if is_drawn else (f"This model has learned from {dataset.info['source']}, and this page may show faces of "
                              "it: do not pass it on, unless you may pass on the pictures.")
settings = {
    "about": f"{model.latent_dim} numbers become a picture: the decoder of a variational autoencoder, trained with "
             "NumPy and computed by this page alone. Nothing is sent anywhere.",
    "notice": notice, "latents": model.latent_dim, "decoder": decoder,
    "prior": described_prior(model.prior, numbers), "axes": [numbers.add(axis) for axis in axes[:10]],
    "attributes": [{"name": name.replace("_", " ").replace("5 o C", "5 o'c"), "direction": numbers.add(direction)}
                   for name, direction in zip(names, directions, strict=True)],
    "faces": [{"picture": as_png(held_out[k]), "code": numbers.add(codes[k])} for k in chosen],
}  # fmt: skip
page, weights = args.out / "explorer.html", args.out / "weights.npz"
size = write_page(page, settings, numbers)
checkpoint.save_weights(weights, model, info)
again, _ = load_trained(weights)
assert np.array_equal(to_cpu(again.values), ways["float16"])
print(f"{page}: {size / 1e6:.1f} MB, to be opened in a browser\n{weights}: {weights.stat().st_size / 1e6:.1f} MB, a "
      "checkpoint that no training can go on from\n" + f"{args.out}/directions.png")
if args.open:
    webbrowser.open(page.resolve().as_uri())

# %% What you should see
# The page draws what model.decode draws, to a grey level. Half the bits cost nothing (28.96 dB before and after, the
# default run on toy faces), and neither would 8 significant bits; 4 cost a tenth of a decibel, 3 four tenths (of the
# better pictures of --pretrained three tenths, and 1.2). A pixel is a sum of hundreds of products whose errors are
# independent, and mostly cancel. What does get smaller is what is left out: a checkpoint has 35 MB, two thirds of it
# Adam's memory; these weights, with the encoder and the prior, have 5.7, and the page, without the encoder, 3.8 in
# base64, which writes three bytes as four letters.
#
# One deviation along a single latent changes a toy face of the default run by 5 grey levels at the most, and by 2
# along most latents: a little of everything, which has no name. Along the first axis it is 25 grey levels, along the
# second 19, along the last less than 1: ten axes of 160 hold half of all variance. In directions.png the rows of the
# latents are nearly one face each; axis 1 goes from light to dark, axis 2 takes skin and background apart, and
# glasses come with their name. The longer it learns, the less this is so: the first latents of --pretrained, which
# has had 20 times as many steps, change 18, 17 and 14 grey levels, and its axes 24, 20 and 11. For the encoder's
# independent posteriors do prefer some directions, and in time latents turn to the axes (Rolinek, Zietlow and Martius
# 2019). A direction with a name is another matter: nobody has told the model what glasses are.
#
# In the page, codes from the prior are faces, and those from N(0, I) wreckage. Its last part shows the maps between
# the layers: at 4x4 nothing can be recognised, at 32x32 there are outlines; and one layer paints where it is light
# and dark.
#
# Exercises
# 1. Round to 8 bits of one scale for each layer, as int8 is. Which layer minds most, and how many bytes has the page?
# 2. Give the page the latents of this table for axes. What do the sliders of the 1st, the 81st and the 160th change?
# 3. The page's flow takes 50 steps. With how few is a new face still one? (settings.prior.flow.steps, in the console)
