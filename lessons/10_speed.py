"""Lesson 10: one convolution, from nested loops to the fast path, in nine steps.

You will learn what makes array code fast on a CPU (few calls, and arrays that stay in cache), how 9 products do the
work of 16, why a core wants a thread of its own, and what a GPU wants (VAE_BACKEND=cupy measures that).
"""

# %% Settings
import copy
import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor

from tools.common import add_data, command_line, open_dataset, parse, positive

import numpy as np
from threadpoolctl import threadpool_limits

from tools import figures, gpu, gpu_timing, machines
from vae_np.backend import xp
from vae_np.conv import unfold
from vae_np.fast import products, winograd
from vae_np.fast.arrays import FastConv2d, FastConvTranspose2d, Workspace
from vae_np.fast.cores import BUFFER, available_cores, core_for_each
from vae_np.fast.winograd import WinogradConv2d, WinogradConvTranspose2d
from vae_np.train import Settings

parser = command_line(__doc__, "runs/10_speed")
parser.add_argument("--seconds", type=positive, default=1.0, help="seconds for each measurement")
add_data(parser)
parser.add_argument("--quality", type=positive, metavar="SECONDS", help="train beside PyTorch, and chart it")
args = parse(parser)
if args.quality and (xp is not np or importlib.util.find_spec("torch") is None):
    parser.error("--quality takes a CPU, and PyTorch (pip install torch)")
if xp is not np:
    raise SystemExit(gpu_timing.measure(args.out, args.seconds))
IMAGES, SIZE, INPUTS, OUTPUTS = 32, 32, 32, 64  # the second layer of the reference model, with half a worker's shard
rng = np.random.default_rng(0)

# %% Three products for four
# A kernel of two taps, g0 and g1, moves over b0, b1 and b2 and makes two outputs: four products. Take three instead:
# m0 = (b0 - b1) g0, m1 = b1 (g0 + g1), m2 = (b2 - b1) g1. Then m0 + m1 = b0 g0 + b1 g1, for b1 g0 cancels, and m1 + m2
# = b1 g0 + b2 g1, for b1 g1 does. That pays where g is a matrix, which is cheap to add and not to multiply with.
D = np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]])  # b -> (b0 - b1, b1, b2 - b1)
E = np.array([[1, 0], [1, 1], [0, 1]])  # g -> (g0, g0 + g1, g1)
A = np.array([[1, 1, 0], [0, 1, 1]])  # m -> (m0 + m1, m1 + m2)
b, g = np.array([5, 2, 7]), np.array([3, 4])
t, u = D @ b, E @ g
print(f"four products     y0 = 5*3 + 2*4 = 23, y1 = 2*3 + 7*4 = 34\nthree products    {t} * {u} = {t * u}, "
      f"and neighbours added up: {A @ (t * u)}")

# %% Nine for sixteen
# Now 3x3 numbers B, 2x2 taps G, 2x2 outputs. With a row for one number it is the case above: three products of rows for
# four. Each is that case again, for columns: 9 for 16. Matrices on the left work on rows, on the right on columns.
B, G = np.array([[1, 2, 0], [3, 1, 4], [2, 5, 1]]), np.array([[1, 2], [3, 1]])
T, U = D @ B @ D.T, E @ G @ E.T
Y = A @ (T * U) @ A.T
print(f"3x3 numbers       B {B.tolist()}, kernel G {G.tolist()}\nnine products     {T.tolist()} * {U.tolist()}\n"
      f"                  = {(T * U).tolist()}, added up: {Y.tolist()}")
assert np.array_equal(Y, [[(B[i : i + 2, j : j + 2] * G).sum() for j in (0, 1)] for i in (0, 1)]), "as with sixteen"

# %% A layer of such products
# A 4x4 kernel at stride 2 always starts on an even pixel. Cut the padded image into blocks of 2x2 pixels, and take
# the 4 C numbers of a block for the channels of one pixel: the kernel is 2x2 of them.
#   input_transform    pads, and takes differences of rows and columns of blocks: nine T, a row for a tile, 3x3 blocks.
#   kernels_of         cuts kernels in the same way and takes kernel_transform: the nine U, each a matrix (4 C, F).
#   output_transform   adds the nine T U up to 2x2 outputs, through a view of y that has those four in front.
image, kernel = rng.integers(0, 10, (1, 8, 12, 1)), rng.integers(-3, 4, (4, 4, 1, 1))
tiles, kernels = winograd.input_transform(image, Workspace()), winograd.kernels_of(kernel, Workspace())
print(f"8x12 pixels       tiles {tiles.shape} @ kernels {kernels.shape} = {(tiles @ kernels).shape}, of 2x3 tiles")
assert np.array_equal(tiles[4, 0], image[0, 1:3, 1:3].ravel()), "fifth of nine: b1 in both directions, a block as it is"

# %% Backwards: the adjoints
# t = D b, u = E g, m = t u, y = A m. On the way back each matrix is transposed, and m has the product rule:
#     dm = A^T dy          dg = E^T (t dm)          db = D^T (u dm)
# A is the transpose of E, so the transforms of kernels and outputs change places; that of the input needs an adjoint of
# its own. In fast/winograd.py nobody multiplies by these matrices: each is a function that adds. Are they the same?
dy = np.array([1, 10])
print(f"backwards         dy {dy} -> dg {E.T @ (t * (A.T @ dy))}; by hand 5*1 + 2*10 and 2*1 + 7*10")
for name, given, shape, matrix in (("input_transform_1d", b[:, None], (3, 1, 1), D),
                                   ("kernel_transform_1d", g[:, None], (3, 1), E),
                                   ("output_transform_1d", t[:, None], (2, 1), E.T),
                                   ("input_transform_1d_adjoint", t[:, None, None], (3, 1), D.T)):
    getattr(winograd, name)(given, written := np.empty(shape, int))
    assert np.array_equal(written.ravel(), matrix @ given.ravel()), name

# %% How fast is this machine?
# Times are the least of several, since whatever else the machine does adds to them. Trust no difference of a tenth.
fastest = functools.partial(machines.fastest, args.seconds)
threadpool_limits(1, user_api="blas")  # from here on BLAS keeps to the thread that calls it
left, right, product = rng.random((3, 1024, 1024), dtype=np.float32)
peak = 2 * 1024**3 / fastest(np.matmul, left, right, product)  # a multiplication and an addition each
work = (SIZE // 2) ** 2 * OUTPUTS * 16 * INPUTS
print(f"\nA product of 1024x1024 float32 matrices, one core: {peak / 1e9:.1f} GFLOP/s. The layer: {work:,} "
      f"multiplications an image,\nwhich every row counts; 9/16 are {work * 9 // 16:,}. {IMAGES} images, one core:\n"
      f"{'ms/image':>38s}{'images/s':>10s}{'gain':>10s}{'in all':>9s}{'GFLOP/s':>9s}{'of product':>12s}")


def step(name, why, function, images=IMAGES):
    """Time a function that makes the output of so many images, check it, and print a row. 16 products count always."""
    steps[name] = rate = images / fastest(function)
    made = np.reshape(function(), (-1, OUTPUTS))
    assert np.allclose(made, answer[: len(made)], rtol=0, atol=1e-4), name
    rates, speed = list(steps.values()), 2 * work * rate
    print(f"{name:28s}{1e3 / rate:10.3f}{rate:10,.1f}{rate / rates[max(0, len(rates) - 2)]:10.1f}"
          f"{rate / rates[0]:9,.0f}{speed / 1e9:9.3f}{speed / peak:12.2%}\n    {why}", flush=True)


conv, fast = (kind(INPUTS, OUTPUTS, 4, np.random.default_rng(1), 2, 1) for kind in (FastConv2d, WinogradConv2d))
conv.bias.value[...] = fast.bias.value[...] = np.linspace(-1, 1, OUTPUTS)
weight, bias, matrix, steps = conv.weight.value, conv.bias.value, conv.weight.value.reshape(-1, OUTPUTS), {}
x = rng.standard_normal((IMAGES, SIZE, SIZE, INPUTS), dtype=np.float32)
answer = conv.forward(x).reshape(-1, OUTPUTS)
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # of the first three steps, which are timed without it
numbers, taps = padded[0].tolist(), weight.tolist()  # Python is slower still at picking single numbers from an array

# %% Steps 1 to 3: loops, in Python and out of it
def loops():
    return [bias[f] + sum(numbers[2 * i + a][2 * j + b][c] * taps[a][b][c][f]
                          for a in range(4) for b in range(4) for c in range(INPUTS))
            for i in range(4) for j in range(SIZE // 2) for f in range(OUTPUTS)]


def offsets():
    y = np.zeros((IMAGES, SIZE // 2, SIZE // 2, OUTPUTS), np.float32) + bias
    for a, b in np.ndindex(4, 4):  # pixel (a, b) of every patch: every second pixel of the image, from there on
        y += padded[:, a : a + SIZE : 2, b : b + SIZE : 2] @ weight[a, b]
    return y


step("1 nested loops", "every number goes through the interpreter (4 rows of one output, scaled up)", loops, 8 / SIZE)
step("2 a product for each patch", "compiled loops, many numbers an instruction; but Python sees every pixel",
     lambda: [padded[n, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4].reshape(-1) @ matrix + bias
              for n in range(IMAGES) for i in range(SIZE // 2) for j in range(SIZE // 2)])
step("3 a product for each offset", "16 turns of Python instead of thousands; but each adds to all of y anew", offsets)

# %% Steps 4 to 9: one product, and in the end pieces of it, which BLAS need not copy into an order of its own first
small, products.has_small_kernels = products.has_small_kernels, lambda: False
step("4 unfold, one product", "BLAS adds in registers, 4 copies of a pixel", lambda: unfold(x, 4, 2, 1) @ matrix + bias)
step("5 FastConv2d", "the same arrays at every call: new ones cost page faults", lambda: conv.forward(x))
near, winograd.TILES = winograd.TILES, 1 << 30
step("6 nine products", "9 products for 16, and 9/4 copies of a pixel for 4", lambda: fast.forward(x))
winograd.TILES = near
step("7 a few images at a time", "their tiles are still in cache when the products read them", lambda: fast.forward(x))
np.setbufsize(BUFFER)
step("8 NumPy's buffer small", "no copies of what has gaps", lambda: fast.forward(x))
products.has_small_kernels = small
step("9 products in pieces", "BLAS need not copy factors (on AVX-512); all of WinogradConv2d", lambda: fast.forward(x))
ends = [kind(INPUTS, 3, 4, rng, 2, 1) for kind in (FastConvTranspose2d, WinogradConvTranspose2d)]
print("    the last layer, {} -> 3 channels: {:.3f} ms/image unfolded, {:.3f} plane by plane".format(
    INPUTS, *(1e3 / IMAGES * fastest(end.forward, x) for end in ends)))

# %% A thread on each core
# NumPy copies and adds on one core, whatever BLAS does. Give each core a thread, with a layer and shards of its own.
cores, pool = available_cores(), ThreadPoolExecutor(available_cores(), initializer=core_for_each(available_cores()))
shards = [rng.standard_normal(x.shape, dtype=np.float32) for _ in range(max(cores, 4))]
batch = np.concatenate(shards)


def on_threads(layers):
    return [*pool.map(lambda i: [layers[i].forward(shard) for shard in shards[i :: len(layers)]], range(len(layers)))]


print(f"\nimages/s, {len(batch)} images   on one core   a thread on each of {cores}   one call, BLAS on all cores")
for one in (conv, fast):
    layers = [copy.deepcopy(one) for _ in range(cores)]
    fastest(lambda: [*pool.map(np.matmul, [left] * cores, [right] * cores)])  # BLAS starts slow in some threads
    rates = [len(batch) / fastest(on_threads, some) for some in (layers[:1], layers)]
    assert np.allclose(on_threads(layers)[-1][0], conv.forward(shards[cores - 1]), rtol=0, atol=1e-4)
    products.has_small_kernels = lambda: False  # BLAS would leave small pieces to one of its threads
    with threadpool_limits(cores, user_api="blas"):
        rates.append(len(batch) / fastest(one.forward, batch))
    products.has_small_kernels = small
    print(f"{type(one).__name__:24s}{rates[0]:13,.0f}{rates[1]:25,.0f}{rates[2]:30,.0f}")
try:
    from tools import twin
except ImportError:
    print("PyTorch is not installed here; where it is, this lesson times it too.")
else:
    steps["PyTorch"], all_cores = twin.convolutions(batch, weight, bias, cores, fastest)
    print(f"{'PyTorch':24s}{steps['PyTorch']:13,.0f}{all_cores:55,.0f}")
figures.bars(args.out / "steps.png", steps, "images per second on one core",
              (peak / 2 / work, f"16 products at the speed of BLAS, {peak / 1e9:.0f} GFLOP/s"))
print(f"{args.out}/steps.png")

# %% How soon is a picture good? The default model and its twin in PyTorch, of the same weights, batches and noise
if args.quality:
    twin.race(args.out / "quality.png", open_dataset(args.data), Settings(), args.quality)

# %% And on a GPU?
gpu.explain()  # launches and memory traffic count there: tools/gpu.py adds them up, and gpu_timing.py times them

# %% What you should see
# A thousand times the speed once Python sees no single numbers, and about six times after that. (Step 3 beats 4 to 6 on
# AVX-512, as its products are small already; but backwards it would add to dx 16 times.) PyTorch is faster still here.
#
# Exercises
# 1. The first layer is IMAGES, SIZE, INPUTS, OUTPUTS = 32, 64, 3, 32. Which way does it go? Which steps are the same?
# 2. Above step 4, set winograd.TILES to 64, one image, and to 1024. What do small groups lose, and what large ones?
# 3. Find four products that make three outputs of a kernel of two taps. How many would 3x3 outputs take, for 36?
