"""Lesson 6: the way from one face to another.

You will learn to walk between two codes, in a straight line and along an arc, why that looks like a face all the way
while a cross-fade of pixels does not, and what single dimensions of the code have come to mean.
"""

# %% Settings
from tools.common import add_checkpoint, command_line, encode_all, open_checkpoint, parse, require, spread

import numpy as np

from tools.figures import save_animation
from vae_np.run.command import POSITIVE, number_in
from vae_np.study import pictures
from vae_np.study.metrics import kl_of_codes
from vae_np.train import to_float

parser = command_line(__doc__, "runs/06_interpolate")
add_checkpoint(parser)
parser.add_argument("--steps", type=number_in(range(2, 1000)), default=9, help="pictures from one face to the other")
parser.add_argument("--pairs", type=POSITIVE, default=4, help="pairs of faces")
args = parse(parser)
model, info, dataset = open_checkpoint(args.checkpoint, args.data)
held_out = dataset.split(dataset.held_out())
require(held_out, 2, "held-out")


# %% Two ways between two codes
# Linear: z(t) = (1 - t) a + t b. Its middle is shorter than its ends: in many dimensions two random codes are nearly
# orthogonal, so halfway the length has shrunk by the root of 2, to where hardly any code of a face lies.
def linear(a, b, t):
    return (1 - t) * a + t * b


# Spherical (White 2016, after Shoemake 1985): turn from a to b through the angle w between them,
# z(t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b. Between codes of equal length this keeps the length and turns
# at constant speed; between others it does so nearly.
def spherical(a, b, t):
    w = np.arccos(np.clip(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    if np.sin(w) < 1e-6:  # the same direction, where nothing turns, or opposite ones, where no way is the shortest
        return linear(a, b, t)
    return ((np.sin((1 - t) * w) * a + np.sin(t * w) * b) / np.sin(w)).astype(a.dtype)


# In the plane, halfway between (1, 0) and (0, 1) lies (1/2, 1/2), or, along the arc, (cos 45, sin 45).
east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
print(f"halfway from (1, 0) to (0, 1): linear {linear(east, north, 0.5)}, "
      f"spherical {spherical(east, north, 0.5).round(4)}")
assert np.allclose(spherical(east, north, 0.5), [np.cos(np.pi / 4), np.sin(np.pi / 4)])

# %% From one held-out face to another
# The ends are codes of faces that the model has never seen. The first and last picture of each row are the faces
# themselves. A cross-fade mixes the pixels of the two faces and shows both at once, like a double exposure.
chosen = held_out[spread(2 * min(args.pairs, len(held_out) // 2), len(held_out))]
starts, ends = to_float(chosen[0::2]), to_float(chosen[1::2])
codes_a, codes_b = model.encode(starts)[0], model.encode(ends)[0]
times = np.linspace(0, 1, args.steps, dtype=np.float32)
rows = []
for start, end, a, b in zip(starts, ends, codes_a, codes_b, strict=True):
    straight = np.stack([linear(a, b, t) for t in times])
    arc = np.stack([spherical(a, b, t) for t in times])
    fade = np.stack([linear(start, end, t) for t in times])
    for label, strip in (("linear", model.decode(straight)), ("spherical", model.decode(arc)), ("cross-fade", fade)):
        rows.append((label, np.concatenate([start[None], strip, end[None]])))
    lengths = np.linalg.norm([a, b, linear(a, b, 0.5), spherical(a, b, 0.5)], axis=1)
    print("length of the code: {:.1f} and {:.1f} at the ends; halfway {:.1f} linear, {:.1f} spherical".format(*lengths))
pictures.save(args.out / "interpolations.png", pictures.labelled_rows(rows))

# Smooth means that no step is much larger than the others. Measured in pixels, a cross-fade moves evenly by design.
steps = np.sqrt(np.mean(np.diff(rows[1][1][1:-1], axis=0) ** 2, axis=(1, 2, 3)))
print(f"change from one picture to the next on the first arc: {steps.min():.4f} to {steps.max():.4f}")

# %% What does one dimension mean?
# Take the code of one face, the first of the last pair, and move it along one direction as far as codes of other faces
# go, from three standard deviations below their mean to three above it. First along single dimensions, those with the
# largest KL, which say most about a face; then along the axes in which the codes of faces vary most, their principal
# components: for the network, no dimension is better than any other direction.
mu, log_var = encode_all(model, held_out[:2000])
center, dimensions = mu.mean(axis=0), np.argsort(-kl_of_codes(mu, log_var))[:4]
axes = np.linalg.svd(mu - center, full_matrices=False)[2][:4]
rows = []
for label, direction in [*((f"z[{i}]", np.eye(len(center), dtype=mu.dtype)[i]) for i in dimensions),
                         *((f"axis {i}", axis) for i, axis in enumerate(axes, start=1))]:
    along = (mu - center) @ direction
    start = codes_a[-1] - (codes_a[-1] - center) @ direction * direction
    z = start + np.linspace(-3, 3, args.steps, dtype=mu.dtype)[:, None] * along.std() * direction
    rows.append((f"{label}\n-3 to 3\ndeviations", model.decode(z)))
pictures.save(args.out / "traversals.png", pictures.labelled_rows(rows))

# %% An animation
# Round trip through all the faces chosen above, along arcs; each time eased in and out, so that faces linger.
stations = np.concatenate([codes_a, codes_b])
frames = []
for a, b in zip(stations, np.roll(stations, -1, axis=0), strict=True):
    eased = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0, 1, 16, endpoint=False, dtype=np.float32))
    frames += [spherical(a, b, t) for t in eased]
faces = model.decode(np.stack(frames).astype(np.float32))
save_animation(args.out / "interpolation.gif", [pictures.enlarge(face, 2) for face in faces])
print(f"{args.out}/interpolations.png, traversals.png, interpolation.gif ({len(faces)} frames)")

# %% What you should see
# Along the codes every picture is one face, on its way from one that you recognise to another: skin, hair and the
# background change evenly, a head turns, a beard thins out. No step is more than a few times another; a jump would be.
# In the middle of a cross-fade there are two faces, with two outlines. Linear and spherical ways differ little at their
# ends and more in the middle, where the linear one is closer to the mean face, and paler. Where two faces have little
# in common, as a bald one and one with long hair, what lies between is a compromise in places. Single dimensions change
# several things at once, each a little: nothing in the loss asks for one dimension to be one property. The axes change
# much, and what is large: light and dark, the background, hair.
#
# Exercises
# 1. Interpolate between a face and its mirror image (face[:, ::-1]). What turns, and what goes through the mean?
# 2. Go beyond the ends: t from -0.5 to 1.5. How far do faces stay faces?
# 3. Train with --beta 4 and look at the traversals again. Are the dimensions easier to name?
