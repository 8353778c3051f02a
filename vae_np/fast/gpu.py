"""The CUDA kernels of the CuPy backend: one launch where array code would take many, or would move more memory.

Each function here takes the place of a function of the same name elsewhere in the package, which its docstring names
and which says what is computed; `backend.on_gpu` makes the exchange, and the tests compare the two. Every kernel is
the body of a loop over i, written in CUDA C and run for all i at once, a thread each. What a thread writes, no other
thread writes: everything is a gather, which reads wherever it must, and so needs no atomic additions, whose order (and
rounding) would change from run to run.

Sizes that stay the same are constants of the compiled code, since the remainder of a division by a constant is several
times cheaper than that of a variable, and 32-bit indices are cheaper than 64-bit ones; they reach as far as 2^32
numbers, or 16 GB of float32 in one array.
"""

import functools

from vae_np.backend import xp


@functools.cache
def compiled(name, inputs, outputs, body, **constants):
    """A CuPy kernel, compiled once for each set of constants, whole numbers that the body may use by their names."""
    preamble = "".join(f"constexpr int {key} = {value};\n" for key, value in constants.items())
    return xp.ElementwiseKernel(inputs, outputs, body, name, preamble=preamble)


@functools.cache
def no_bias(features, dtype):
    """Zeros (F,) for layers' backward passes, which add no bias."""
    return xp.zeros(features, dtype)


@functools.cache
def ones(count, dtype):
    """Ones (count,): a product with them is a sum."""
    return xp.ones(count, dtype)


# Layers.


ADD_BIAS = """
    const T sum = y + bias[i % F];
    out = sum > 0 ? sum : slope * sum;
"""


def add_bias(y, bias, slope=1.0):
    """layers.add_bias: y (..., F) + bias (F,) and LeakyReLU, in place."""
    kernel = compiled("add_bias", "T y, raw T bias, T slope", "T out", ADD_BIAS, F=len(bias))
    return kernel(y, bias, slope, y)


def leaky_gradient(y, dy, slope):
    """layers.leaky_gradient: dy where y > 0, else slope * dy."""
    return compiled("leaky_gradient", "T y, T dy, T slope", "T dx", "dx = y > 0 ? dy : slope * dy")(y, dy, slope)


# Convolutions. A pixel's place is found from i, its number in memory: the last axis is what remains of the division by
# its length, and so on to the first.


UNFOLD = """
    unsigned rest = i;
    const int c = rest % C;   rest /= C;
    const int kw = rest % K;  rest /= K;
    const int kh = rest % K;  rest /= K;
    const int ow = rest % OW; rest /= OW;
    const int oh = rest % OH; rest /= OH;  // what is left is the number of the image
    const int h = oh * S - P + kh, w = ow * S - P + kw;
    patches = h >= 0 && h < H && w >= 0 && w < W ? x[((rest * H + h) * W + w) * C + c] : T(0);
"""


def unfold(x, kernel_size, stride, padding, workspace):
    """conv.unfold, one thread for a number of a patch: where does it stand in the image?"""
    _, h, w, c = x.shape
    k, s, p = kernel_size, stride, padding
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    patches = workspace.get("patches", (len(x), oh, ow, k, k, c), x.dtype)
    compiled("unfold", "raw T x", "T patches", UNFOLD, C=c, K=k, S=s, P=p, H=h, W=w, OH=oh, OW=ow)(x, patches)
    return patches.reshape(-1, k * k * c)


FOLD = """
    unsigned rest = i;
    const int c = rest % C; rest /= C;
    const int w = rest % W; rest /= W;
    const int h = rest % H; rest /= H;
    T sum = bias[c];
    // Row kh of patch oh lies on row oh * S - P + kh of the image. So kh leaves the same remainder as h + P.
    for (int kh = (h + P) % S; kh < K && kh <= h + P; kh += S) {
        const int oh = (h + P - kh) / S;
        for (int kw = (w + P) % S; kw < K && kw <= w + P; kw += S) {
            const int ow = (w + P - kw) / S;
            if (oh < OH && ow < OW) sum += patches[((((rest * OH + oh) * OW + ow) * K + kh) * K + kw) * C + c];
        }
    }
    y = sum > 0 ? sum : slope * sum;
"""


def fold(patches, shape, kernel_size, stride, padding, workspace, bias=None, slope=1.0):
    """conv.fold, one thread for a number of an image: which patches cover it?"""
    _, h, w, c = shape
    k, s, p = kernel_size, stride, padding
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    kernel = compiled("fold", "raw T patches, raw T bias, T slope", "T y", FOLD,
                      C=c, K=k, S=s, P=p, H=h, W=w, OH=oh, OW=ow)
    bias = no_bias(c, patches.dtype.char) if bias is None else bias
    return kernel(patches, bias, slope, xp.empty(shape, patches.dtype))


# The fast path, winograd.py. A number of a block of 2x2 pixels, of C channels each, is called q: first the two pixels
# of the upper row, then those of the lower one.


TILES_OF = """
    unsigned rest = i;
    const int q = rest % (4 * C); rest /= 4 * C;
    const int tw = rest % TW;     rest /= TW;
    const int th = rest % TH;     rest /= TH;
    const int h0 = 4 * th + q / (2 * C) - 1, w0 = 4 * tw + q / C % 2 - 1, c = q % C;
    T t[3][3];
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++) {
            const int h = h0 + 2 * a, w = w0 + 2 * b;
            t[a][b] = h >= 0 && h < H && w >= 0 && w < W ? x[((rest * H + h) * W + w) * C + c] : T(0);
        }
    for (int b = 0; b < 3; b++) { t[0][b] -= t[1][b]; t[2][b] -= t[1][b]; }
    for (int a = 0; a < 3; a++) { t[a][0] -= t[a][1]; t[a][2] -= t[a][1]; }
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++) tiles[(3 * a + b) * step + i] = t[a][b];
"""


def tiles_of(x, workspace):
    """winograd.tiles_of, one thread for a number of a tile: read its 3x3 blocks, take differences, write nine."""
    n, h, w, c = x.shape
    th, tw = h // 4, w // 4
    tiles = workspace.get("tiles", (9, n * th * tw, 4 * c), x.dtype)
    kernel = compiled("tiles_of", "raw T x, int64 step", "raw T tiles", TILES_OF, C=c, H=h, W=w, TH=th, TW=tw)
    step = tiles.size // 9
    kernel(x, step, tiles, size=step)
    return tiles


IMAGES_OF = """
    unsigned rest = i;
    const int c = rest % C; rest /= C;
    const int w = rest % W; rest /= W;
    const int h = rest % H; rest /= H;
    const int bh = (h + 1) / 2, bw = (w + 1) / 2;  // the block that the pixel lies in
    const int q = (2 * ((h + 1) % 2) + (w + 1) % 2) * C + c;
    T sum = bias[c];
    // An odd block is the middle one of its tile, and t0 and t2 hold it with a minus. An even one is b0 of a tile and
    // b2 of the tile before.
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++) {
            const bool from_middle = bh % 2 == 0 && a == 1 || bw % 2 == 0 && b == 1;
            const int th = bh / 2 - (bh % 2 == 0 && a == 2), tw = bw / 2 - (bw % 2 == 0 && b == 2);
            if (from_middle || th < 0 || th >= TH || tw < 0 || tw >= TW) continue;
            const bool minus = (bh % 2 == 1 && a != 1) != (bw % 2 == 1 && b != 1);  // two of them are a plus
            const T t = tiles[(3 * a + b) * step + ((rest * TH + th) * TW + tw) * (4 * C) + q];
            sum += minus ? -t : t;
        }
    y = sum > 0 ? sum : slope * sum;
"""


def images_of(tiles, shape, workspace, bias=None, slope=1.0):
    """winograd.images_of, one thread for a number of an image: which tiles hold its block, and with which sign?"""
    _, h, w, c = shape
    kernel = compiled("images_of", "raw T tiles, raw T bias, T slope, int64 step", "T y", IMAGES_OF,
                      C=c, H=h, W=w, TH=h // 4, TW=w // 4)
    bias = no_bias(c, tiles.dtype.char) if bias is None else bias
    return kernel(tiles, bias, slope, tiles.size // 9, xp.empty(shape, tiles.dtype))


NINE_OF_FOUR = """
    const T middle0 = g00 + g01, middle1 = g10 + g11;
    nine[i] = g00;                   nine[i + step] = middle0;               nine[i + 2 * step] = g01;
    nine[i + 3 * step] = g00 + g10;  nine[i + 4 * step] = middle0 + middle1; nine[i + 5 * step] = g01 + g11;
    nine[i + 6 * step] = g10;        nine[i + 7 * step] = middle1;           nine[i + 8 * step] = g11;
"""


def nine_of_four(four, nine, workspace):
    """winograd.nine_of_four, one thread for four numbers; CuPy finds their places, which are not neighbours."""
    kernel = compiled("nine_of_four", "T g00, T g01, T g10, T g11, int64 step", "raw T nine", NINE_OF_FOUR)
    kernel(four[0, 0], four[0, 1], four[1, 0], four[1, 1], nine.size // 9, nine)


FOUR_OF_NINE = """
    T upper[3], lower[3];
    for (int b = 0; b < 3; b++) {
        upper[b] = nine[i + b * step] + nine[i + (b + 3) * step];
        lower[b] = nine[i + (b + 3) * step] + nine[i + (b + 6) * step];
    }
    const T sum[4] = {upper[0] + upper[1], upper[1] + upper[2], lower[0] + lower[1], lower[1] + lower[2]};
    T y[4];
    for (int p = 0; p < 4; p++) {
        y[p] = sum[p] + bias[i % F];
        y[p] = y[p] > 0 ? y[p] : slope * y[p];
    }
    y00 = y[0]; y01 = y[1]; y10 = y[2]; y11 = y[3];
"""


def four_of_nine(nine, four, workspace, bias=None, slope=1.0):
    """winograd.four_of_nine, one thread for four numbers."""
    features = four.shape[-1]
    kernel = compiled("four_of_nine", "raw T nine, raw T bias, T slope, int64 step", "T y00, T y01, T y10, T y11",
                      FOUR_OF_NINE, F=features)
    bias = no_bias(features, nine.dtype.char) if bias is None else bias
    kernel(nine, bias, slope, nine.size // 9, four[0, 0], four[0, 1], four[1, 0], four[1, 1])


# Losses and the update.


CROSS_ENTROPY = """
    const T softplus = max(logit, T(0)) + log1p(exp(-abs(logit)));
    term = softplus - x * logit;
    gradient = (exp(logit - softplus) - x) * scale;
"""


def cross_entropy(logits, x, scale):
    """losses.cross_entropy, without a pass over memory for each operation."""
    kernel = compiled("cross_entropy", "T logit, T x, T scale", "T term, T gradient", CROSS_ENTROPY)
    terms, dlogits = kernel(logits, x, scale)
    return terms.sum() * scale, dlogits


ADAM_STEP = """
    m += m_rate * (g - m);
    v += v_rate * (g * g - v);
    value -= m_scale * m / (sqrt(v) * v_scale + epsilon);
"""


def adam_step(values, grads, m, v, beta1, beta2, epsilon, m_scale, v_scale):
    """optim.adam_step: each number is read once and written once. m, v and values hold the old ones as it begins.

    1 - beta is worked out here, in float64: in float32, 1 - 0.999 would be off by 1e-5.
    """
    compiled("adam_step", "T g, T m_rate, T v_rate, T epsilon, T m_scale, T v_scale", "T m, T v, T value", ADAM_STEP)(
        grads, 1 - beta1, 1 - beta2, epsilon, m_scale, v_scale, m, v, values)
