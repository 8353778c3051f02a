"""Lesson 11: one model on many machines: what a gradient costs on its way, and how many machines pay.

You will learn why a gradient can be summed across machines, how a ring does it, what a batch that grows with them does
to learning, and to add up the time of a step before anybody buys a network. It takes MPI: pip install -e ".[mpi]".
"""

# %% Settings
import functools
import json
import math
import sys

from tools.common import LESSONS, add_data, command_line, open_dataset, parse, positive, require

import numpy as np

from tools import machines
from tools.machines import difference, fastest, sum_seconds
from tools.training import resized
from vae_np import VAE
from vae_np.backend import to_cpu, to_device
from vae_np.errors import TrainingError
from vae_np.fast import processes
from vae_np.fast.workers import ParallelVAE
from vae_np.losses import Gaussian
from vae_np.run.command import POSITIVE
from vae_np.run.trainer import Trainer
from vae_np.train import Settings

parser = command_line(__doc__, "runs/11_machines")
add_data(parser)
parser.add_argument("--epochs", type=POSITIVE, default=4, help="epochs of each of 13 small models; the text is about 4")
parser.add_argument("--limit", type=POSITIVE, default=3000, metavar="N", help="the first N training images only")
parser.add_argument("--seconds", type=positive, default=0.5, help="seconds for each measurement")
args = parse(parser)
world = processes.world()  # of all processes, where mpiexec has started this one; else None
if world is None:
    start_two, dataset = machines.launcher(2), open_dataset(args.data)
    images, held_out = dataset.split("train", args.limit), dataset.split("validation")
    require(images, 1, "training")
    require(held_out, 1, "validation")

# %% A gradient is a sum
# The loss of a batch is a mean over its images: a sum of what the parts of the batch contribute, each with its share as
# the weight. So is the gradient. vae_np/fast/workers.py has threads compute the parts, which may as well be in several
# machines. Noise is drawn for the whole batch, or the sum would depend on the cuts. In float32 it does, a little: fewer
# rows may be added up in another order, and where rounding takes a number to the other side of 0, LeakyReLU has another
# slope. So here is float64. What is no sum over images needs its own: a calibrated sigma's errors, the KL of free bits.
BATCH, SIGMA = 64, 1 / 8
rng, models = np.random.default_rng(0), {dtype: ParallelVAE(dtype=dtype) for dtype in ("float32", "float64")}
x = to_device(rng.random((BATCH, 64, 64, 3), dtype=np.float32))
eps = to_device(rng.standard_normal((BATCH, models["float32"].latent_dim), dtype=np.float32))


def gradient(first=0, end=BATCH, dtype="float64"):
    """The gradient of the mean over a part of the batch, on the host. (Under mpiexec, VAE() would do all by itself.)"""
    models[dtype].loss_and_gradient(*(a[first:end].astype(dtype) for a in (x, eps)), Gaussian(SIGMA))
    return to_cpu(models[dtype].grads).copy()


if world is None:
    whole, cuts = gradient(), (BATCH // 2, BATCH // 4)
    (a, b), (c, d) = ((gradient(0, cut), gradient(cut)) for cut in cuts)
    print(f"{whole.size:,} derivatives, {4 * whole.size / 1e6:.1f} MB in float32; how far from the whole batch's are")
    for name, total in (("the mean of two halves'", (a + b) / 2),
                        ("1/4 of a quarter's and 3/4 of the rest's", c / 4 + 3 * d / 4),
                        ("the mean of these two, a usual mistake", (c + d) / 2)):
        print(f"    {name:48s}{difference(total, whole):.0e}")


# %% A ring
# Now each of N processes has a part, and each wants the sum. If all send theirs to one, that one receives N - 1
# buffers. In a ring everybody talks to two neighbours only: cut the buffer into N pieces; N - 1 times, pass one on to
# the right and add the one that comes from the left. Then each process has the whole sum of one piece (reduce-scatter).
# N - 1 more times, sums are passed on (all-gather). So each process sends 2 (N - 1) / N of a buffer, less than two
# however many they are, in 2 (N - 1) messages.
def ring(world, buffer):
    """Replace the buffers of all processes by their sum; return how many bytes this one has sent."""
    n, rank, sent = world.size, world.rank, 0
    pieces = np.array_split(buffer, n)  # views of the buffer
    arrived = np.empty_like(pieces[0])  # none is longer
    for step in range(2 * (n - 1)):
        gone, piece = pieces[(rank - step) % n], pieces[(rank - step - 1) % n]
        place = arrived[: len(piece)] if step < n - 1 else piece
        world.Sendrecv(gone, (rank + 1) % n, recvbuf=place, source=(rank - 1) % n)
        if step < n - 1:
            piece += place
        sent += gone.nbytes
    return sent


# %% What a sum costs
# This takes several processes, so the lesson starts itself with two, of a thread each. They run it up to the line with
# machines.measure, and end there. On a machine of two cores, more processes would only share cores, and measure
# that; your own network you measure with, say, mpiexec -n 2 -hosts one,two python lessons/11_machines.py. A model
# of it has two figures, from MPI's times of the smallest buffer and of the gradient's: a message takes latency + bytes
# / bandwidth. The sizes between say whether it is any good.
if world is not None:
    machines.measure(world, ring, gradient, BATCH, args.out, args.seconds)
    processes.leave(models["float32"])
    raise SystemExit
machines.start([*start_two, sys.executable, LESSONS / "11_machines.py", "--out", args.out, "--seconds",
                str(args.seconds)])
found = json.loads((args.out / "allreduce.json").read_text(encoding="utf-8"))
here, sizes = found["model"], np.array(found["sizes"])
machines.draw(args.out / "allreduce.png", (
    {"the ring, in Python": (sizes, found["ring"], "s-"), "MPI's Allreduce": (sizes, found["mpi"], "o-"),
     "the model": (sizes, sum_seconds(2, sizes, *here), "k--")},
    {"title": "the sum of two buffers", "xlabel": "bytes", "ylabel": "seconds", "xscale": "log", "yscale": "log"}))

# %% The batch must grow
# Eight machines that share a batch of 32 compute on four images each, and wait for a sum that takes as long as ever. So
# they take batches of 256: but then the same images are an eighth of the steps. May a step be longer for it? One
# machine can find out, since a batch does not tell who computed it. Small models of small faces are each trained on as
# many images; with the learning rate as it is, times the root of the batch's growth, or times the growth.
train, validation = resized(images, 16), resized(held_out, 16)
BATCHES = [32, 64, 128, 256, 512]
RULES = {"rate as it is": lambda growth: 1, "times the root": math.sqrt, "times the growth": lambda growth: growth}


@functools.cache  # at batch 32 the three rules are one
def losses(batch, rate):
    """The validation loss after each epoch."""
    settings = Settings(epochs=args.epochs, batch_size=batch, learning_rate=rate, likelihood="gaussian", sigma=SIGMA)
    trainer = Trainer(VAE(16, (16, 32), 16), train, validation, settings)
    try:
        return [trainer.train_epoch()["val_loss"] for _ in range(args.epochs)]
    except TrainingError:  # it is no longer finite
        return [math.nan] * args.epochs


print(f"\nvalidation loss, nats, after {args.epochs} epochs of {len(train):,} images\n{'batch':>6s}{'steps':>7s}"
      + "".join(f"{rule:>18s}" for rule in RULES))
last = {rule: [] for rule in RULES}
for batch in BATCHES:
    for rule, factor in RULES.items():
        last[rule].append(losses(batch, 4e-3 * factor(batch / 32))[-1])
    print(f"{batch:6d}{args.epochs * math.ceil(len(train) / batch):7d}"
          + "".join(f"{values[-1]:18.1f}" for values in last.values()), flush=True)
machines.draw(args.out / "batches.png", (
    {f"batch {batch}": ([*map(str, range(1, args.epochs + 1))], losses(batch, 4e-3), "o-") for batch in BATCHES},
    {"title": "the learning rate as it is", "xlabel": "epoch", "ylabel": "validation loss, nats"}), (
    {rule: ([*map(str, BATCHES)], values, "o-") for rule, values in last.items()},
    {"title": f"after epoch {args.epochs}", "xlabel": "batch", "ylabel": "validation loss, nats"}))

# %% The time of a step
# T = fixed + compute / N + bytes moved / bandwidth + latency, for machines that compute as this one does on all cores.
# Fixed is what a step takes whatever its batch (to read weights, to write their gradients): from the times of 4 images
# and of 64. "memory" is the network measured above; of real ones the bandwidth is their name, and the latency is
# assumed, 30 us for a message over TCP: measure yours. Left out is Adam. If a batch of 1,024 is shared out, up to which
# N are N machines worth N / 2, and which is quickest? If each brings 32 images, what part of a step does it compute?
many, few = (fastest(args.seconds, gradient, 0, images) for images in (BATCH, 4))
fixed = np.clip((BATCH * few - 4 * many) / (BATCH - 4), 0, 0.9 * many)  # within reason, on a busy machine, too
image, size, N = (many - fixed) / BATCH, sizes[-1], 2 ** np.arange(11)
NETWORKS = {f"{name} Gbit/s": (30e-6, name * 1e9 / 8) for name in (1, 10, 100)} | {"memory": here}
print(f"\nA gradient here: {1e3 * fixed:.1f} ms, and {1e3 * image:.2f} ms an image\n"
      f"{'':16s}1,024 images shared out        32 images each, computing\n{'':14s}"
      f"{'worth N/2':>10s}{'quickest':>10s}{'speedup':>9s}" + "".join(f"{f'N = {n:,}':>11s}" for n in N[1::3]))
shared, grown, quickest, NAMES = {}, {}, [], [f"{n:,}" for n in N]
for name, network in NETWORKS.items():
    wait = sum_seconds(N, size, *network)
    took, part = fixed + 1024 * image / N + wait, (fixed + 32 * image) / (fixed + 32 * image + wait)
    shared[name], grown[name], gain = (NAMES, took, "-"), (NAMES, part, "-"), took[0] / took
    quickest.append((NAMES[gain.argmax()], took.min()))
    print(f"{name:14s}{N[gain >= N / 2][-1]:10,d}{N[gain.argmax()]:10,d}{gain.max():9.1f}"
          + "".join(f"{share:11.1%}" for share in part[1::3]))
shared |= {"no network": (NAMES, fixed + 1024 * image / N, "k:"), "the quickest": (*zip(*quickest, strict=True), "ko")}
machines.draw(args.out / "machines.png", (
    shared, {"title": "a batch of 1,024 shared out", "xlabel": "machines", "ylabel": "seconds", "yscale": "log"}), (
    grown, {"title": "32 images each", "xlabel": "machines", "ylabel": "part that computes", "ylim": (0, 1.02)}))
print(f"{args.out}/allreduce.png, batches.png, machines.png")

# %% Is overlap worth its lines?
# The gradients of the last layers are known long before those of the first. Their sum could be on its way during the
# rest of the backward pass, which has two of a step's three products. At best that hides the sum, or as much of it as
# lasts two thirds of the computing. What a step of 16 machines would take then, of what it takes without:
KINDS = [(speed, images) for speed in (1, 200) for images in (32, 128)]  # 200: an H100, by README.md
print(f"\n{'images each':12s}" + "".join(f"{f'{images}, {speed} x this machine':>25s}" for speed, images in KINDS))
for name, network in NETWORKS.items():
    wait = sum_seconds(16, size, *network)
    compute = np.array([(fixed + images * image) / speed for speed, images in KINDS])
    hidden = np.minimum(wait, 2 / 3 * compute) / (wait + compute)
    print(f"{name:12s}" + "".join(f"{1 - part:25.0%}" for part in hidden))

# %% What you should see
# Cut as you like: parts with their share as the weight sum up to the gradient. MPI wins where messages are small, the
# ring mostly where they are large; the model is up to three times off between. Larger batches are fewer steps: at one
# rate, 512 ends 550 nats behind 32. The rate times the growth makes up for most of it up to 256; at 512 the root is
# better. Of machines such as two cores, up to 32 are worth half their number on 10 Gbit/s, 8 on 1 Gbit/s, and on real
# networks a step is longer again beyond 128. With 32 images each, 16 machines compute for a quarter of a step on 1
# Gbit/s, for three quarters on 10. Overlap saves a third where both take as long, mostly less, a fifth on the quickest
# network for GPUs, and nothing on slow ones: this package does without.
#
# Exercises
# 1. Send float16 in `ring`: how far is its sum from MPI's then, and what does half of `size` do to the last tables?
# 2. Sum by a tree: in log2(N) rounds, each process exchanges its whole buffer with the one whose rank differs in one
#    bit. What does sum_seconds become, and from which size on does the ring win with 64 machines on 10 Gbit/s?
# 3. How many epochs do batches of 512 need until they are where batches of 32 were after four (--epochs)? What does
#    that leave of the gain of 16 machines, on each network?
