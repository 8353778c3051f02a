"""Lesson 1: faces as arrays.

You will learn what a model of faces gets to see: numbers between 0 and 1, in three splits, with attributes beside them.
At the end stands the simplest autoencoder of all, principal components. It is linear, its best solution is known, and
lesson 4 measures the variational autoencoder against it.
"""

# %% Settings
from tools.common import add_data, command_line, open_dataset, parse, require, spread

import numpy as np

from vae_np.disk.dataset import SPLITS
from vae_np.run.command import POSITIVE
from vae_np.study import pictures
from vae_np.study.metrics import psnr
from vae_np.study.principal_components import PrincipalComponents
from vae_np.train import to_float

parser = command_line(__doc__, "runs/01_data")
add_data(parser)
parser.add_argument("--components", type=POSITIVE, default=160, help="principal components to keep")
args = parse(parser)
dataset = open_dataset(args.data)
train = dataset.split("train")
require(train, 20, "training")

# %% One face is an array
# The dataset keeps bytes, 0 to 255, red, green and blue for each pixel: 12,288 numbers for a face of 64x64. The model
# computes with float32 numbers in [0, 1]. Dividing by 255 is all there is to it, but it is done in one place only
# (to_float): a model that is trained on [0, 1] and fed with 0 to 255 fails silently.
print(dataset)
face = train[0]
naive = np.zeros(face.shape, np.float32)
for row, column, channel in np.ndindex(face.shape):
    naive[row, column, channel] = face[row, column, channel] / 255
assert np.allclose(naive, to_float(face), atol=1e-7), "to_float must equal the loop"
print(f"one face: {face.dtype} {face.shape}, from {face.min()} to {face.max()}; "
      f"as floats from {naive.min():.3f} to {naive.max():.3f}")

# %% Three splits
# The model learns from the training images alone. Validation images are for choosing (how long to train, which beta),
# test images for the final figures. A figure measured on training images says how well the model remembers, not how
# well it understands.
for name in SPLITS:
    print(f"{name:>10}: {len(dataset.split(name)):7,} images")
held_out = dataset.split(dataset.held_out())

# %% Attributes
# How many of the training faces have each attribute? Rare ones are hard to learn from: there is little to see.
train_attributes = dataset.attributes[dataset.splits["train"]]
frequencies = dict(zip(dataset.attribute_names, train_attributes.mean(axis=0).tolist(), strict=True))
for name, frequency in sorted(frequencies.items(), key=lambda item: -item[1]):
    print(f"{name:>20} {frequency:6.1%} {'#' * round(40 * frequency)}")

rows = [("any", train[spread(10, len(train))])]
shown = ("Smiling", "Eyeglasses", "Blond_Hair", "Wearing_Hat", "Bald", "Mustache")
for name in [name for name in shown if name in frequencies]:
    owners = np.flatnonzero(train_attributes[:, dataset.attribute_names.index(name)])
    if len(owners) >= 10:
        rows.append((name, train[owners[spread(10, len(owners))]]))
pictures.save(args.out / "faces.png", pictures.labelled_rows(rows))

# %% The mean face, and where faces differ
# Averaging many faces pixel by pixel gives a face again, because the photographs are aligned: eyes lie on eyes. The
# standard deviation says where faces differ: most around the head, where one has hair and another background, and in
# the eyes. A sample of the images will do, spread evenly over the split.
sample = to_float(train[spread(4000, len(train))])
mean, deviation = sample.mean(axis=0), sample.std(axis=0)
rows = [("mean", mean[None]), ("standard\ndeviation", (deviation / deviation.max())[None])]
pictures.save(args.out / "mean_and_deviation.png", pictures.labelled_rows(rows, scale=3))
print(f"standard deviation of a pixel: {deviation.min():.3f} to {deviation.max():.3f}, mean {deviation.mean():.3f}")
print(f"PSNR of answering every face with the mean face: {psnr(to_float(held_out[:1000]), mean[None]).mean():.2f} dB")

# %% Principal components: the best linear autoencoder
# Write a face as a long vector x. Its code is a few numbers, codes = (x - mean) C^T, and its reconstruction
# mean + codes C, where the rows of C are orthonormal directions. The C that reconstructs best, in squared error, holds
# the directions in which faces vary most: the first right singular vectors of the matrix of centred faces (Eckart and
# Young 1936). Naively that is one call, on a matrix that must fit into memory.
few = train[:200]
flat = to_float(few).reshape(len(few), -1)
_, _, directions = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
count = min(10, len(few) - 1)
naive_codes = (flat - flat.mean(axis=0)) @ directions[:count].T
naive_faces = (flat.mean(axis=0) + naive_codes @ directions[:count]).clip(0, 1).reshape(-1, *face.shape)

# The package finds the same directions reading the images a batch at a time, so that all of CelebA will do.
same = PrincipalComponents.fit(few, count, iterations=12)
by_svd, by_package = (psnr(to_float(few), faces).mean() for faces in (naive_faces, same.reconstruct(to_float(few))))
print(f"{count} components of {len(few)} faces: {by_svd:.4f} dB by one call, {by_package:.4f} dB a batch at a time")
assert abs(by_svd - by_package) < 0.01, "the two ways must agree"

# %% What the components look like, and how much they carry
pca = PrincipalComponents.fit(train[spread(10_000, len(train))], min(args.components, len(train) - 1))
directions = pca.components[:10].reshape(-1, *mean.shape)
scaled = 0.5 + 0.5 * directions / np.abs(directions).max(axis=(1, 2, 3), keepdims=True)
rows = [(f"from the {start + 1}.", scaled[start : start + 5]) for start in range(0, len(scaled), 5)]
pictures.save(args.out / "components.png", pictures.labelled_rows(rows))

x = to_float(held_out[:1000])
codes = pca.encode(x)
chosen = spread(10, len(x))
rows = [("held out", x[chosen])]
for kept in sorted({1, 8, 32, len(pca.components)}):
    quality = psnr(x, pca.decode(codes[:, :kept])).mean()
    print(f"principal components kept: {kept:4d}; held-out faces reconstructed at {quality:.2f} dB")
    rows.append((f"{kept}: {quality:.1f} dB", pca.decode(codes[chosen, :kept])))
pictures.save(args.out / "reconstructions.png", pictures.labelled_rows(rows))
print(f"pictures: {args.out}/faces.png, mean_and_deviation.png, components.png, reconstructions.png")

# %% What you should see
# The mean face is a blurred but friendly face. The first components are light and dark, background, hair. With 8
# components all faces look alike, with 160 you recognise them, though a ghost of other faces shines through: a linear
# code can only add and subtract the same pictures. A PSNR of 20 dB is an error of 0.1 on average, 26 dB of 0.05.
#
# Exercises
# 1. Draw faces from a Gaussian with the components' variances (pca.variances): what do they lack?
# 2. Which attribute differs most from the mean face? Show the mean of its owners minus the mean of the others.
# 3. Fit the components on 100 training faces only and reconstruct training and held-out faces: what does the gap say?
