"""Lesson 2: layers with gradients by hand, and the model that is built from them.

You will learn how a convolution becomes a matrix product, why the transposed convolution is the same thing read
backwards, how to find out whether a handwritten gradient is right, and what the whole model looks like.
"""

# %% Settings
import os
import sys

os.environ["VAE_BACKEND"] = "plain"  # the ten files of the lecture alone; lesson 10 tells what is faster
from tools.common import command_line, parse

import numpy as np

from data_tools.toy_faces import draw_face, face_factors
from tools.bugs import BUGS, demonstrate, list_bugs
from vae_np import VAE, backend
from vae_np.conv import Conv2d, ConvTranspose2d, fold, unfold
from vae_np.gradcheck import numerical_gradient, relative_error
from vae_np.losses import kl_divergence
from vae_np.run.command import POSITIVE
from vae_np.run.gradient_table import all_checks, print_table
from vae_np.study import pictures
from vae_np.train import to_float

backend.FASTER.clear()  # in a notebook that has imported vae_np before, the line above comes too late

parser = command_line(__doc__, "runs/02_model")
parser.add_argument("--image-size", type=POSITIVE, default=64, help="image size of the last table's model")
parser.add_argument("--channels", type=POSITIVE, nargs="+", default=[24, 48, 96, 192],
                    help="channels of its convolutions")
parser.add_argument("--latent-dim", type=POSITIVE, default=160, help="numbers in its code")
parser.add_argument("--break", dest="bug", choices=["list", *BUGS], metavar="NAME",
                    help="plant a bug and see which check catches it, instead of the lesson; list names them")
args = parse(parser)
if args.bug:
    sys.exit(list_bugs() if args.bug == "list" else demonstrate(BUGS[args.bug]))
model = VAE(args.image_size, tuple(args.channels), args.latent_dim)  # of the last table
rng = np.random.default_rng(0)


def random(*shape):
    return rng.standard_normal(shape)


# %% A convolution in nested loops
# A kernel of K x K pixels looks at a patch of the image, multiplies it number by number with its weights and adds up:
# one output. Then it moves on by `stride` pixels. There are F kernels, so every patch gives F outputs.
#
#     y[n, i, j, f] = b[f] + sum over a, b, c of x[n, i s + a, j s + b, c] w[a, b, c, f]        (x padded with zeros)
def naive_conv(x, weight, bias, stride, padding):
    k = len(weight)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    n, oh, ow = len(x), (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    y = np.zeros((n, oh, ow, weight.shape[3]))
    for image in range(n):
        for i in range(oh):
            for j in range(ow):
                patch = x[image, i * stride : i * stride + k, j * stride : j * stride + k]
                for f in range(weight.shape[3]):
                    y[image, i, j, f] = (patch * weight[..., f]).sum() + bias[f]
    return y


# %% The same as a matrix product
# Write every patch as a row of a matrix, P = unfold(x), and every kernel as a column of a matrix W. Then y = P W + b:
# one product, which the processor does a hundred times faster than loops in Python.
conv = Conv2d(3, 5, kernel_size=4, rng=rng, stride=2, padding=1, dtype="float64")
x = random(2, 9, 7, 3)
patches = unfold(x, 4, 2, 1)
print(f"{conv!r}: x {x.shape} -> patches {patches.shape} -> y {conv.forward(x).shape}")
loops = naive_conv(x, conv.weight.value, conv.bias.value, 2, 1)
print(f"  nested loops and unfold + product differ by {np.abs(loops - conv.forward(x)).max():.1e}")
assert np.allclose(loops, conv.forward(x), rtol=0, atol=1e-12)

# %% Backwards: the adjoint
# y = P W is a product, so dW = P^T dy and dP = dy W^T. What is left is the way from P back to x. unfold copies a pixel
# into every patch that sees it; so the gradients of all these copies must be added up. That is `fold`: for any u and v,
# <unfold(u), v> = <u, fold(v)>. Such a pair is called adjoint; for a matrix it would be the transpose.
u, v = random(2, 9, 7, 3), random(*patches.shape)
left = (unfold(u, 4, 2, 1) * v).sum()
right = (u * fold(v, u.shape, 4, 2, 1)).sum()
print(f"  <unfold(u), v> = {left:.12f}\n  <u, fold(v)>   = {right:.12f}")

# %% The transposed convolution
# The decoder has to turn small images into large ones. The backward pass of a convolution does just that: it turns the
# gradient of a small y into the gradient of a large x. So use it forward. Naively, each input pixel adds a whole kernel
# to the output, scaled by its value:
def naive_conv_transpose(x, weight, bias, stride, padding):
    k, (n, h, w, _) = len(weight), x.shape
    y = np.zeros((n, (h - 1) * stride + k, (w - 1) * stride + k, weight.shape[2]))
    for i in range(h):
        for j in range(w):
            y[:, i * stride : i * stride + k, j * stride : j * stride + k] += np.einsum(
                "nc,abfc->nabf", x[:, i, j], weight)
    return y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding] + bias


up = ConvTranspose2d(5, 3, kernel_size=4, rng=rng, stride=2, padding=1, dtype="float64")
small = random(2, 4, 3, 5)
loops = naive_conv_transpose(small, up.weight.value, up.bias.value, 2, 1)
print(f"{up!r}: x {small.shape} -> y {up.forward(small).shape}")
print(f"  adding kernels one by one and product + fold differ by {np.abs(loops - up.forward(small)).max():.1e}")
assert np.allclose(loops, up.forward(small), rtol=0, atol=1e-12)

# With equal weights, its forward pass is the convolution's backward pass.
down = Conv2d(3, 5, kernel_size=4, rng=rng, stride=2, padding=1, dtype="float64")
down.weight.value[...] = up.weight.value
down.forward(random(2, 8, 6, 3))
print(f"  the convolution's backward pass and this layer's forward pass differ by "
      f"{np.abs(down.backward(small) - up.forward(small)).max():.1e}")

# %% What they do to a face
# Kernels chosen by hand instead of learned. Light minus shade across a 4x4 patch answers to edges, in one direction or
# the other. A transposed convolution with a tent of a kernel doubles a picture: 4x4 at stride 2 overlaps evenly, every
# output pixel gets the same weight; 3x3 at stride 2 does not, and leaves a checkerboard (Odena et al. 2016). All but
# the rim: the zeros that pad a picture are an edge to the first, and darken what the second makes of it.
face = to_float(draw_face(face_factors(seed=0, index=4), 64))
gray = face.mean(axis=2)[None, :, :, None].astype(np.float64)
edges = Conv2d(1, 2, kernel_size=4, rng=rng, stride=2, padding=1, dtype="float64")
step = np.repeat([1, -1], 2)[:, None] * np.ones(4) / 4
edges.weight.value[...] = np.stack([step, step.T], axis=-1)[:, :, None]
horizontal, vertical = np.moveaxis(edges.forward(gray)[0], -1, 0)


def doubled(kernel):
    """The face at half its size, doubled by a transposed convolution with one kernel for each colour."""
    layer = ConvTranspose2d(3, 3, kernel_size=len(kernel), rng=rng, stride=2, padding=1, dtype="float64")
    layer.weight.value[...] = np.outer(kernel, kernel)[:, :, None, None] * np.eye(3)
    y = layer.forward(half[None])[0]
    return np.pad(y, ((0, 64 - len(y)), (0, 64 - len(y)), (0, 0)))  # 3x3 makes 63 pixels of 32


half = face.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3), dtype=np.float64)
edge_maps = [np.repeat(0.5 + part[:, :, None], 3, axis=2) for part in (horizontal, vertical)]
rows = [("face, edges:\nlying, upright", np.stack([face, *(pictures.enlarge(part, 2) for part in edge_maps)])),
        ("half, 4x4, 3x3", np.stack([pictures.enlarge(half, 2), doubled([1 / 4, 3 / 4, 3 / 4, 1 / 4]),
                                     doubled([2 / 3, 2 / 3, 2 / 3])]))]
pictures.save(args.out / "convolutions.png", pictures.labelled_rows(rows, scale=3))
print(f"{args.out}/convolutions.png: a face, its edges, and the face at half its size doubled by 4x4 and 3x3 kernels")

# %% Is a gradient right?
# Move one number by a tiny h and see how the loss moves: (L(x + h) - L(x - h)) / 2h. That is slow, but there is nothing
# in it that could be wrong in the same way as the formula. h must be neither large, since then the loss curves, nor
# tiny, since then the two losses agree in nearly all their digits. In float64 1e-5 is about right, in float32 none is.
mu, log_var = random(4, 3), random(4, 3)
_, _, dlog_var = kl_divergence(mu, log_var)
print("\nh, and the relative error of (L(x + h) - L(x - h)) / 2h, for the KL divergence and log_var:")
for h in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-11):
    numerical = numerical_gradient(lambda: kl_divergence(mu, log_var)[0], log_var, h)
    print(f"  {h:.0e}  {relative_error(dlog_var, numerical):.0e}")

# The same for every input, weight and bias of every layer. The whole ELBO has too many parameters for that. One random
# direction u checks them all at once: the gradient's product with u must be the derivative of the loss along u.
print("\nVAE_BACKEND=plain python -m vae_np.gradcheck")
print_table(all_checks())

# %% Break it
# Would these checks notice? Plant a bug and see. Twelve of the kind that real projects ship are in
# lessons/tools/bugs.py, each a few lines. Some of them no finite difference can find: where forward and backward
# are wrong together, they fit.
print("\npython lessons/02_model.py --break NAME")
list_bugs()

# %% The whole model
# Each convolution halves height and width. Multiplications are what training costs; a dense layer has many weights but
# uses each once, a convolution uses its few weights at every place.
print(f"\n{model}\n{'layer':70s}{'output':>15s}{'parameters':>12s}{'multiplications':>17s}")
x = rng.random((1, args.image_size, args.image_size, 3), dtype=np.float32)
paths = [("encoder", path, x) for path in model.encoder.paths]
paths += [("decoder", path, model.encode(x)[0]) for path in model.decoder.paths]  # mu stands in for z
for part, path, h in paths:
    for layer in path.layers:
        positions = h.shape[1] * h.shape[2] if isinstance(layer, ConvTranspose2d) else 1
        h = layer.forward(h)
        positions = h.shape[1] * h.shape[2] if isinstance(layer, Conv2d) else positions
        parameters = sum(parameter.value.size for parameter in layer.parameters)
        products = layer.weight.value.size * positions if parameters else 0
        print(f"{f'{part} {layer!r}':70s}{h.shape[1:]!s:>15s}{parameters:12,d}{products:17,d}")

# %% What you should see
# Differences of 1e-15 or so, the rounding of float64; relative errors of 1e-8 or less, and for h a best value between
# two evils. In the last table the six convolutions with many channels on both sides do nearly all the work, and the two
# dense layers, which do hardly any, hold half of the parameters.
#
# Exercises
# 1. Run --break for each of the twelve. Before you look: will finite differences find it, and in which lines?
# 2. Write a 2x2 maximum pooling layer in vae_np/layers.py, with its backward pass. What does gradcheck say to it before
#    you add an example to layer_examples, and after?
# 3. Check a convolution with dy = 1 instead of a random one, with height-width-swapped planted and an input that is
#    symmetric. When does the check fail to see it?
