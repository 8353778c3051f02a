"""Lesson 9: a face in seventy bytes.

You will learn how a code becomes bits (rounding, entropy, a range coder), what they cost in theory and on disk, and
where a learned codec wins against principal components, JPEG and WebP, and where it loses. And it is a codec to use:

    python lessons/09_compress.py encode IN.png OUT.vaez
    python lessons/09_compress.py decode IN.vaez OUT.png
"""

# %% Settings
import io
import math
import sys
from fractions import Fraction

from tools.common import add_checkpoint, command_line, encode_all, open_checkpoint, parse, require, set_aside, spread

import numpy as np
from PIL import Image

from tools.vaez import add_commands, codec_of, run_command
from vae_np.errors import CheckpointError
from vae_np.run.command import POSITIVE
from vae_np.study import pictures
from vae_np.study.codec import HEADER, Codec
from vae_np.study.metrics import kl_of_codes, psnr, ssim
from vae_np.study.principal_components import PrincipalComponents
from vae_np.study.priors import draw
from vae_np.study.range_coder import Encoder
from vae_np.train import to_float

parser = command_line(__doc__, "runs/09_compress")
add_checkpoint(parser)
parser.add_argument("--limit", type=POSITIVE, metavar="N", default=100, help="held-out images to compress")
add_commands(parser)
args = parse(parser)
codec_path = codec_of(args)
if args.command:
    run_command(args, codec_path, parser)
    sys.exit()

# %% From codes to whole numbers
# mu is 160 numbers of 32 bits. How many of these bits matter? The decoder was trained on z = mu + std * eps, so it can
# depend on nothing that is finer than std. Round each dimension to multiples of step * std, with the root mean square
# of std over training faces. How often a rounded value comes up among training faces is its probability p, and log2(1 /
# p) bits are its price. Where the codes fill the prior, they spread over 1 / std deviations, which makes log2(1 / std)
# bits: about the KL divergence again. A dimension that tells nothing is always 0 and costs nothing.
model, info, dataset = open_checkpoint(args.checkpoint, args.data)
train, split = dataset.split("train"), dataset.held_out()
require(train, 20, "training")
train = train[spread(10_000, len(train))]
train_mu, train_log_var = encode_all(model, train, "encoding training faces")
held_out = dataset.split(split)
held_out = held_out[spread(args.limit, len(held_out))]
faces = to_float(held_out)
mu, log_var = encode_all(model, held_out)
codec = Codec.fit(model, train_mu, train_log_var, args.step)

values = codec.quantise(train_mu[:1])  # of a training face: another's might follow an escape symbol
naive = sum(math.log2(table[-1] / (table[symbol + 1] - table[symbol]))
            for table, symbol in zip(codec.tables, values[0] - codec.lowest, strict=True))
print(f"a training face is {' '.join(map(str, values[0, :12]))} ... and costs {naive:.1f} bits")
assert math.isclose(naive, codec.bits(values)[0], rel_tol=1e-9)

# %% From whole numbers to bytes
# vae_np/study/range_coder.py derives the coder: a message is an interval, and every symbol narrows it. With fractions:
low, width = Fraction(0), Fraction(1)
coder = Encoder()
for symbol in (1, 0, 2):  # in an alphabet of three, with frequencies 1, 2 and 5
    coder.put(symbol, (0, 1, 3, 8))
    low, width = low + width * Fraction((0, 1, 3)[symbol], 8), width * Fraction((1, 2, 5)[symbol], 8)
print(f"symbols 1, 0, 2 are the interval from {low} to {low + width}, or {-math.log2(width):.2f} bits; as bytes, in "
      f"hexadecimal: {coder.finish().hex(' ')}")
assert (Fraction(coder.low, coder.whole), Fraction(coder.width, coder.whole)) == (low, width)

# %% The codec as a file
# A .vaez file is the code and eight bytes before it (study/codec.py). All else that it takes to see the face is with
# the reader: the checkpoint and codec.npz, with the tables. Give both to whom you send .vaez files, and keep them: with
# a model that was trained further, or with tables for another step, old files are refused.
try:
    is_new = Codec.load(codec_path, model).fingerprint != codec.fingerprint
except CheckpointError:
    is_new = True
if is_new:
    set_aside(codec_path)  # files that it has made need it
    codec.save(codec_path)

# %% How finely?
# Smaller steps cost bytes, larger ones quality. Rounding to multiples of d errs with a variance of d^2 / 12: at a step
# of 3.5 as much as the posterior itself, and the bytes are then about the KL divergence. That is no accident. Bits-back
# coding sends a code *drawn* from the posterior, at the price of log2 1 / p(z), and gets back the log2 1 / q(z | x)
# bits that chose it: in all the KL (Hinton and van Camp 1993; Townsend, Bird and Barber 2019). Only someone who knows x
# can work out q and give them back, so that is for lossless files, which hold the errors, too: the KL is their code's
# share. Where the errors are lost, random numbers that both sides know do it for a little more (Flamich et al. 2020).
def measure(kind, setting, decoded, sizes, bare):
    """Print and return: mean bytes of a file, the same without its header, PSNR, SSIM; the kind; the first pictures."""
    row = (np.mean(sizes), np.mean(bare), psnr(faces, decoded).mean(), ssim(faces, decoded).mean())
    print(f"{f'{kind}, {setting}':27s}{row[0]:10.1f}{row[1]:16.1f}{row[2]:10.2f} dB{row[3]:9.3f}")
    return *row, kind, decoded[:8]


def measure_codec(kind, posterior, codes, decode, step):
    """Fit a codec to training codes, write the held-out ones, and measure what comes back."""
    codec = Codec.fit(model, *posterior, step)
    values = codec.quantise(codes)
    files = [codec.pack(row) for row in values]
    assert all(np.array_equal(codec.unpack(file, kind), row) for file, row in zip(files, values, strict=True))
    sizes = np.array([len(file) for file in files])
    assert (sizes - HEADER <= np.ceil(codec.bits(values) / 8)).all(), "the entropy, rounded up to a byte"
    return measure(kind, f"step {step:g}", decode(codec.dequantise(values)), sizes, sizes - HEADER)


results = {"VAE": [], "PCA": [], "JPEG": [], "WebP": []}
print(f"{f'{len(faces)} {split} images':27s}{'bytes':>10s}{'without header':>16s}{'PSNR':>10s}   {'SSIM':>9s}")
steps = sorted({1, 2, 4, 6, 9, 14, 20, 28, args.step})
results["VAE"] = [measure_codec("VAE", (train_mu, train_log_var), mu, model.decode, step) for step in steps]
ours = results["VAE"][steps.index(args.step)]
z = draw(mu, log_var, np.random.default_rng(0))
kl = kl_of_codes(mu, log_var).sum() / math.log(2) / 8
bits_back = measure("KL, no file", "through z", model.decode(z), kl, kl)

# %% Principal components, JPEG and WebP
# Is it the VAE that is good, or the codec? The best linear code of the same size goes through the same coder. JPEG and
# WebP know nothing of faces and were made for larger pictures, so they may scale down first. Their headers could stay
# with the reader, as our tables do: what is left of a file without them is the least that it could ever be.
pca = PrincipalComponents.fit(train, min(model.latent_dim, len(train) - 1))
train_codes = np.concatenate([pca.encode(to_float(train[start : start + 512])) for start in range(0, len(train), 512)])
for step in (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4):  # of one length in every direction: log_var is 0, scale_j is 1
    results["PCA"].append(measure_codec("PCA", (train_codes, np.zeros_like(train_codes)), pca.encode(faces), pca.decode,
                                        step * model.image_size / 32))


def squeeze(face, kind, side, quality):
    """A face through a file of that size: what comes back, the bytes of the file, and those beyond its headers."""
    file, options = io.BytesIO(), {"JPEG": {"optimize": True}, "WebP": {"method": 6}}[kind]
    small = Image.fromarray(face).resize((side, side), Image.Resampling.LANCZOS)
    small.save(file, kind, quality=quality, **options)
    content = file.getvalue()
    # JPEG: up to the scan's own 14 bytes, and 2 of "end of image". WebP: RIFF, chunk and frame.
    header = content.rindex(b"\xff\xda") + 14 + 2 if kind == "JPEG" else 12 + 8 + 10
    back = Image.open(file).resize(face.shape[:2], Image.Resampling.BICUBIC)
    return np.asarray(back), len(content), len(content) - header


size = model.image_size
settings = [(size // k, quality) for k in (8, 4, 2) for quality in (1, 20, 60)]
settings += [(size, quality) for quality in (1, 10, 30, 60, 90)]
for kind in ("JPEG", "WebP"):
    for side, quality in settings:
        decoded, *sizes = zip(*(squeeze(face, kind, side, quality) for face in held_out), strict=True)
        results[kind].append(measure(kind, f"{side}x{side}, quality {quality}", to_float(np.stack(decoded)), *sizes))

# %% All on one scale
chart, axes = pictures.figure(width=8.0, height=4.5)
ax = axes[0, 0]
for (kind, rows), colour in zip(results.items(), ("tab:red", "tab:orange", "tab:blue", "tab:green"), strict=True):
    for column, style, what in ((0, "o-", "files"), (1, "o:", "without headers")):
        points = sorted((row[column], row[2]) for row in rows)
        best = [(x, y) for x, y in points if y == max(other for size, other in points if size <= x)]
        ax.plot(*zip(*best, strict=True), style, color=colour, markersize=4, label=f"{kind}, {what}")
ax.plot(bits_back[0], bits_back[2], "k*", label="KL: a code drawn from the posterior")
ax.set(xscale="log", xlabel="bytes per face (logarithmic)", ylabel="PSNR, dB")
ax.grid(alpha=0.3, which="both")
ax.legend(fontsize="small")
pictures.save_figure(args.out / "bytes_and_psnr.png", chart)

shown = [("", ours)]
for kind in ("PCA", "JPEG", "WebP"):  # the best of at most a tenth more bytes, were headers free
    shown.append((", as small", min(results[kind], key=lambda row: (max(0, row[1] - 1.1 * ours[1]), -row[2]))))
for kind in ("JPEG", "WebP"):  # the smallest file that is as good
    shown.append((", as good", min(results[kind], key=lambda row: (row[2] < ours[2], row[0]))))
rows = [(f"{kind}{why}\n{bare:.0f} bytes\n+ {size - bare:.0f} of header\n{quality:.1f} dB", decoded)
        for why, (size, bare, quality, _, kind, decoded) in shown]
pictures.save(args.out / "at_equal_bytes.png", pictures.labelled_rows([("held out", faces[:8]), *rows]))
print(f"{args.out}/bytes_and_psnr.png, at_equal_bytes.png; {codec_path}")

# %% What you should see
# A face in some seventy bytes that one recognises, where a WebP file as small shows a smear, and a JPEG has 285 before
# it says anything. For equal PSNR, WebP takes four times the bytes on toy faces and two and a half times on CelebA,
# JPEG nine and six; headers apart, JPEG takes six on toy faces. Where WebP has blocks, the VAE has blur: it knows what
# a face looks like. But after ten epochs 29 dB (CelebA: 25) is all that it can say: from some 330 bytes on (CelebA:
# 190) WebP is better than it ever gets. Nor does it come for nothing: the reader holds a model of 10 MB (in a
# checkpoint of 35, with what it takes to train on and a prior), which is of use for faces alone. The principal
# components hold 8 MB, and are the rival to be afraid of: at some forty bytes of code they draw level, at seventy the
# VAE is a decibel ahead (CelebA: half a decibel), and they never reach what it says in sixty (CelebA: seventy). Steps
# of a few deviations cost little quality, the knee is near 9: Z dimensions of noise move the picture by about Z sigma^2
# in all, against the H W C sigma^2 that is lost anyway. For a Bernoulli model (lesson 3's --likelihood bernoulli),
# whose codes say less, it is about 2.
#
# Exercises
# 1. Decode each rounded value to the mean of the training codes that were rounded to it. What does that gain at step 6?
# 2. What does a code from N(0, I) cost, by codec.bits(codec.quantise(rng.standard_normal(mu.shape))), beside one of a
#    face, and why? The tables are made from mu: what do they hold of a dimension that says nothing?
# 3. Train with --beta 4 and with --beta 0.25 and come back: which points of bytes_and_psnr.png move where?
