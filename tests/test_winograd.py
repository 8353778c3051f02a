"""The fast path for 4x4 stride-2 convolutions: the numbers of the simple layers, for 9 products in 16."""

import numpy as np
import pytest

from vae_np import VAE, vae
from vae_np.backend import to_cpu, to_device, xp
from vae_np.conv import Conv2d, ConvTranspose2d, Workspace
from vae_np.errors import InputError
from vae_np.fast import winograd
from vae_np.fast.winograd import (
    WinogradConv2d,
    WinogradConvTranspose2d,
    differences,
    differences_adjoint,
    four_of_nine,
    images_of,
    nine_of_four,
    three_of_two,
    tiles_of,
    two_of_three,
)
from vae_np.gradcheck import relative_error
from vae_np.losses import Bernoulli

# Each with the simple layer that it stands in for and the rows or columns of its input that make a tile.
KINDS = [(WinogradConv2d, Conv2d, 4), (WinogradConvTranspose2d, ConvTranspose2d, 2)]
both_kinds = pytest.mark.parametrize(("kind", "simple_kind", "tile"), KINDS, ids=["Conv2d", "ConvTranspose2d"])
# Images in a group: a batch of fewer, of as many, of one more, and of more groups than one and a part.
GROUP = 3
# Batch, tiles across and down, channels in and out.
SIZES = [
    (1, (1, 1), 1, 1),
    (1, (2, 3), 3, 5),
    (GROUP - 1, (1, 4), 2, 6),
    (GROUP, (4, 1), 6, 2),
    (GROUP + 1, (3, 2), 5, 4),
    (2 * GROUP + 2, (2, 2), 4, 3),
    (3 * GROUP, (1, 1), 1, 6),
]


def twins(kind, simple_kind, inputs, outputs, rng, dtype="float64", geometry=(4, 2, 1)):
    """A Winograd layer and a simple one with the same weights."""
    kernel_size, stride, padding = geometry
    layer = kind(inputs, outputs, kernel_size, rng, stride, padding, dtype=dtype)
    layer.bias.value[...] = to_device(rng.standard_normal(outputs))
    return layer, simple_twin(layer, simple_kind)


def simple_twin(layer, kind):
    """A new layer of this kind with the weights of another."""
    kernel_size, stride, padding = layer.geometry
    dtype = layer.weight.value.dtype.name
    twin = kind(layer.inputs, layer.outputs, kernel_size, np.random.default_rng(9), stride, padding, dtype=dtype)
    twin.weight.value[...], twin.bias.value[...] = layer.weight.value, layer.bias.value
    return twin


def draw(rng, shape, dtype="float64"):
    return to_device(rng.standard_normal(shape).astype(dtype))


def results(layer, x, dy):
    """Everything that a layer computes, as copies: {"y", "dx", "weight", "bias"}."""
    y, dx = layer.forward(x), layer.backward(dy)
    arrays = {"y": y, "dx": dx, "weight": layer.weight.grad, "bias": layer.bias.grad}
    return {name: to_cpu(array).copy() for name, array in arrays.items()}


def assert_same_bits(a, b):
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


def assert_adjoint(a, image_of_a, b, image_of_b):
    """Assert <A a, b> = <a, A* b>, up to the rounding of terms of this size."""
    rounding = 1e-13 * np.linalg.norm(to_cpu(image_of_a)) * np.linalg.norm(to_cpu(b))
    assert float((image_of_a * b).sum()) == pytest.approx(float((a * image_of_b).sum()), rel=0, abs=rounding)


class CountedMatmul:
    """Stands in for xp, and notes the shapes of all that is multiplied."""

    def __init__(self):
        self.shapes = []

    def __getattr__(self, name):
        return getattr(xp, name)

    def matmul(self, a, b, out=None):
        self.shapes.append((a.shape, b.shape))
        return xp.matmul(a, b, out=out)

    def counts(self):
        """How often two numbers were multiplied, for each product of matrices (..., I, J) and (..., J, K)."""
        return [int(np.prod(a)) * b[-1] for a, b in self.shapes]


@pytest.fixture
def products(monkeypatch):
    counted = CountedMatmul()
    monkeypatch.setattr(winograd, "xp", counted)
    return counted


# The numbers of the simple layers.


@both_kinds
@pytest.mark.parametrize(("batch", "tiles", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_computes_what_the_simple_layer_computes(
        kind, simple_kind, tile, batch, tiles, inputs, outputs, dtype, tolerance, rng, monkeypatch):
    monkeypatch.setattr(winograd, "GROUP", GROUP)
    layer, simple = twins(kind, simple_kind, inputs, outputs, rng, dtype)
    x = draw(rng, (batch, tiles[0] * tile, tiles[1] * tile, inputs), dtype)
    dy = draw(rng, simple.forward(x).shape, dtype)
    fast, slow = results(layer, x, dy), results(simple, x, dy)
    assert layer.fast
    assert {array.dtype for array in fast.values()} == {np.dtype(dtype)}
    errors = {name: relative_error(array, slow[name]) for name, array in fast.items()}
    assert max(errors.values()) < tolerance, errors


def by_name(model):
    """The gradient of each parameter of a VAE, with a name of its own."""
    return {f"{number} {parameter!r}": to_cpu(parameter.grad) for number, parameter in enumerate(model.parameters)}


def test_the_whole_default_model_computes_what_it_computes_with_simple_layers(rng, monkeypatch):
    fast = VAE(dtype="float64")
    monkeypatch.setattr(vae, "WinogradConv2d", Conv2d)
    monkeypatch.setattr(vae, "WinogradConvTranspose2d", ConvTranspose2d)
    simple = VAE(dtype="float64")
    assert not any(is_fast(layer) for _, layer in layers_of(simple))
    np.testing.assert_array_equal(to_cpu(fast.values), to_cpu(simple.values))
    x, eps = to_device(rng.random((3, 64, 64, 3))), to_device(rng.standard_normal((3, 128)))
    assert relative_error(fast.forward(x, eps)[0], simple.forward(x, eps)[0]) < 1e-10
    for one, other in zip(*(model.loss_and_gradient(x, eps, Bernoulli()) for model in (fast, simple)), strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-10)
    expected = by_name(simple)
    errors = {name: relative_error(gradient, expected[name]) for name, gradient in by_name(fast).items()}
    assert max(errors.values()) < 1e-10, errors


def layers_of(model):
    return [(f"{part}.{number}", layer) for part in ("encoder", "decoder")
            for number, layer in enumerate(getattr(model, part).layers)]


def is_fast(layer):
    return isinstance(layer, (WinogradConv2d, WinogradConvTranspose2d))


def test_six_layers_of_the_default_model_take_the_fast_path_and_its_two_ends_of_3_channels_do_not(rng):
    model = VAE()
    model.forward(draw(rng, (1, 64, 64, 3), "float32").clip(0, 1), draw(rng, (1, 128), "float32"))
    fast = {name: layer for name, layer in layers_of(model) if is_fast(layer)}
    assert list(fast) == ["encoder.2", "encoder.4", "encoder.6", "decoder.3", "decoder.5", "decoder.7"]
    assert all(layer.fast for layer in fast.values())
    ends = {name: type(layer) for name, layer in layers_of(model) if name in ("encoder.0", "decoder.9")}
    assert ends == {"encoder.0": Conv2d, "decoder.9": ConvTranspose2d}


# How they come about.


def test_three_products_give_two_outputs_of_a_kernel_of_two_taps():
    # y0 = b0 g0 + b1 g1 = 5 * 10 + 2 * 3 and y1 = b1 g0 + b2 g1 = 2 * 10 + 7 * 3; then the same from b2 on.
    b, g = to_device(np.array([5, 2, 7, 1, 4])), to_device(np.array([10, 3]))
    tiles, kernels, y = xp.zeros((3, 2), b.dtype), xp.zeros((3, 1), b.dtype), xp.zeros((2, 2), b.dtype)
    differences(b, tiles)
    np.testing.assert_array_equal(to_cpu(tiles), [[5 - 2, 7 - 1], [2, 1], [7 - 2, 4 - 1]])
    three_of_two(g[:, None], kernels)
    np.testing.assert_array_equal(to_cpu(kernels), [[10], [10 + 3], [3]])
    products = tiles * kernels  # three for a tile of two outputs
    np.testing.assert_array_equal(to_cpu(products), [[30, 60], [26, 13], [15, 9]])
    two_of_three(products, y)
    np.testing.assert_array_equal(to_cpu(y), [[50 + 6, 70 + 3], [20 + 21, 10 + 12]])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_steps_in_one_direction_are_adjoint_to_each_other(count, rng):
    blocks, three, four = draw(rng, (2 * count + 1, 3)), draw(rng, (3, count, 3)), draw(rng, (3, 4))
    tiles, added = xp.full(three.shape, np.nan), xp.full(blocks.shape, np.nan)  # what was there must not matter
    differences(blocks, tiles)
    differences_adjoint(three, added)
    assert_adjoint(blocks, tiles, three, added)
    pair = draw(rng, (2, 4))
    kernels, sums = xp.full(four.shape, np.nan), xp.full(pair.shape, np.nan)
    three_of_two(pair, kernels)
    two_of_three(four, sums)
    assert_adjoint(pair, kernels, four, sums)


def test_a_kernel_and_an_image_of_one_tile_by_hand(rng):
    # Pixel (i, j) of the image is 10 i + j. The kernel has a 1 at its upper left pixel and a 2 at its lower right one,
    # which meet pixels (2 p - 1, 2 q - 1) and (2 p + 2, 2 q + 2) for the output (p, q).
    layer = WinogradConv2d(1, 1, 4, rng, stride=2, padding=1, dtype="float64")
    layer.weight.value[...] = 0
    layer.weight.value[0, 0], layer.weight.value[3, 3] = 1, 2
    layer.bias.value[...] = 100
    x = np.add.outer(10.0 * np.arange(4), np.arange(4))
    y = layer.forward(to_device(x[None, :, :, None]))
    assert layer.fast
    np.testing.assert_array_equal(to_cpu(y)[0, :, :, 0], [[100 + 2 * 22, 100], [100, 100 + 11]])


@pytest.mark.parametrize(("batch", "tiles", "channels", "_"), SIZES)
def test_images_of_is_the_adjoint_of_tiles_of(batch, tiles, channels, _, rng, monkeypatch):
    monkeypatch.setattr(winograd, "GROUP", GROUP)
    h, w = 4 * tiles[0], 4 * tiles[1]
    x = draw(rng, (batch, h, w, channels))
    workspace = Workspace()  # one for both, as in a layer
    cut = tiles_of(x, workspace).copy()
    assert cut.shape == (9, batch * tiles[0] * tiles[1], 4 * channels)
    t = draw(rng, cut.shape)
    for _ in range(2):  # anew, and where something is left of an earlier call
        added = images_of(t, x.shape, workspace)
        assert added.shape == x.shape
        assert_adjoint(x, cut, t, added)


@pytest.mark.parametrize("rest", [(), (3,), (2, 4, 5)])
def test_four_of_nine_is_the_adjoint_of_nine_of_four(rest, rng):
    four, nine = draw(rng, (2, 2, *rest)), draw(rng, (3, 3, *rest))
    out, back = xp.full(nine.shape, np.nan), xp.full(four.shape, np.nan)
    nine_of_four(four, out, Workspace())
    four_of_nine(nine, back, Workspace())
    assert_adjoint(four, out, nine, back)
    # Rows (1, 0) and (0, 1) give rows (1, 1, 0) and (0, 1, 1), columns likewise.
    np.testing.assert_allclose(to_cpu(out[1, 1]), to_cpu(four.sum(axis=(0, 1))), rtol=1e-12)
    np.testing.assert_allclose(to_cpu(out[0, 1]), to_cpu(four[0, 0] + four[0, 1]), rtol=1e-12)


@both_kinds
@pytest.mark.parametrize(("batch", "tiles", "inputs", "outputs"), SIZES)
def test_each_product_multiplies_nine_times_where_unfold_multiplies_sixteen_times(
        kind, simple_kind, tile, batch, tiles, inputs, outputs, rng, products):
    layer, simple = twins(kind, simple_kind, inputs, outputs, rng)
    x = draw(rng, (batch, tiles[0] * tile, tiles[1] * tile, inputs))
    y = layer.forward(x)
    assert len(products.shapes) == 1
    layer.backward(y)
    assert len(products.shapes) == 3  # forward, and the gradients of the weight and of the image
    # Every place of a kernel, which is a pixel of the smaller side, times every number of a kernel.
    places = batch * min(x.shape[1], y.shape[1]) * min(x.shape[2], y.shape[2])
    if kind is WinogradConv2d:
        simple.forward(x)
        assert simple.patches.size * outputs == places * simple.weight.value.size
    assert [16 * count for count in products.counts()] == [9 * places * simple.weight.value.size] * 3


# Where tiles do not fit, and what changes between calls.

ODD = [
    ((4, 2, 1), (7, 9)),
    ((4, 2, 1), (6, 7)),
    ((3, 2, 1), (8, 8)),
    ((4, 1, 1), (8, 8)),
    ((4, 2, 0), (8, 8)),
    ((2, 2, 1), (8, 4)),
]


@both_kinds
@pytest.mark.parametrize(("geometry", "size"), ODD)
def test_what_does_not_fit_is_left_to_the_simple_layer(kind, simple_kind, tile, geometry, size, rng, products):
    layer, simple = twins(kind, simple_kind, 3, 5, rng, geometry=geometry)
    x = draw(rng, (2, *size, 3))
    dy = draw(rng, simple.forward(x).shape)
    assert_same_bits(results(layer, x, dy), results(simple, x, dy))
    simple.weight.grad[...] = np.nan
    layer.backward_parameters(dy)
    simple.backward_parameters(dy)
    np.testing.assert_array_equal(to_cpu(layer.weight.grad), to_cpu(simple.weight.grad))
    assert not layer.fast
    assert not products.shapes


@pytest.mark.parametrize(("size", "fits"), [((6, 8), False), ((8, 6), False), ((10, 2), False), ((8, 12), True)])
def test_a_convolution_needs_sides_that_4_divides(size, fits, rng, products):
    layer, simple = twins(WinogradConv2d, Conv2d, 3, 5, rng)
    x = draw(rng, (2, *size, 3))
    assert relative_error(layer.forward(x), simple.forward(x)) < 1e-10
    assert bool(products.shapes) is fits


@pytest.mark.parametrize(("size", "fits"), [((3, 4), False), ((4, 3), False), ((5, 1), False), ((2, 6), True)])
def test_a_transposed_convolution_needs_sides_that_2_divides(size, fits, rng, products):
    layer, simple = twins(WinogradConvTranspose2d, ConvTranspose2d, 3, 5, rng)
    x = draw(rng, (2, *size, 3))
    assert relative_error(layer.forward(x), simple.forward(x)) < 1e-10
    assert bool(products.shapes) is fits


@both_kinds
@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (0, 5, 6, 3)])
def test_a_batch_of_no_images_gives_no_images_and_gradients_of_0(kind, simple_kind, tile, shape, rng):
    layer, simple = twins(kind, simple_kind, 3, 5, rng)
    layer.weight.grad[...] = layer.bias.grad[...] = 99
    x = draw(rng, shape)
    assert_same_bits(results(layer, x, simple.forward(x)), results(simple, x, simple.forward(x)))


@both_kinds
@pytest.mark.parametrize("shape", [(2, 0, 8, 3), (2, 8, 0, 3), (2, 0, 0, 3), (2, 8, 8, 4), (8, 8, 3)])
def test_what_the_simple_layer_refuses_is_refused_in_the_same_way(kind, simple_kind, tile, shape, rng):
    layer, simple = twins(kind, simple_kind, 3, 5, rng)
    with pytest.raises(InputError) as expected:
        simple.forward(to_device(np.zeros(shape)))
    with pytest.raises(InputError) as refused:
        layer.forward(to_device(np.zeros(shape)))
    assert str(refused.value) == str(expected.value).replace(simple_kind.__name__, kind.__name__)


# Sizes in tiles: some fit, some do not, and the batches are of several sizes.
CALLS = [(2, 2, 3), (2, 2, 2.5), (2, 2, 3), (5, 2, 3), (1, 2, 3), (1, 0.75, 1.25), (4, 3, 2), (3, 2, 2), (2, 2, 3)]


@both_kinds
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_other_sizes_in_between_leave_nothing_behind(kind, simple_kind, tile, dtype, rng, monkeypatch):
    monkeypatch.setattr(winograd, "GROUP", GROUP)
    layer, simple = twins(kind, simple_kind, 3, 5, rng, dtype)
    ways = []
    for batch, rows, columns in CALLS:
        x = draw(rng, (batch, int(rows * tile) or 1, int(columns * tile), 3), dtype)
        dy = draw(rng, simple.forward(x).shape, dtype)
        assert_same_bits(results(layer, x, dy), results(simple_twin(layer, kind), x, dy))
        ways.append(layer.fast)
    assert ways == [rows == int(rows) and columns == int(columns) for _, rows, columns in CALLS]


@both_kinds
@pytest.mark.parametrize("batch", [1, GROUP, GROUP + 1])
def test_a_batch_of_nan_leaves_nothing_behind(kind, simple_kind, tile, batch, rng, monkeypatch):
    monkeypatch.setattr(winograd, "GROUP", GROUP)
    layer, simple = twins(kind, simple_kind, 3, 5, rng)
    x = draw(rng, (batch, 2 * tile, 3 * tile, 3))
    dy = draw(rng, simple.forward(x).shape)
    assert np.isnan(results(layer, x * np.nan, dy * np.nan)["y"]).all()
    assert_same_bits(results(layer, x, dy), results(simple_twin(layer, kind), x, dy))


@both_kinds
def test_backward_belongs_to_the_last_forward(kind, simple_kind, tile, rng):
    layer, simple = twins(kind, simple_kind, 3, 5, rng)
    first, second = draw(rng, (4, 2 * tile, tile, 3)), draw(rng, (4, 2 * tile, tile, 3))
    dy = draw(rng, simple.forward(first).shape)
    layer.forward(first)
    assert_same_bits(results(layer, second, dy), results(simple_twin(layer, kind), second, dy))
    # Another backward after the same forward gives the same again.
    kept = to_cpu(layer.weight.grad).copy()
    layer.backward(dy)
    np.testing.assert_array_equal(to_cpu(layer.weight.grad), kept)


@both_kinds
def test_new_weights_are_seen_by_the_next_forward(kind, simple_kind, tile, rng):
    layer, _ = twins(kind, simple_kind, 3, 5, rng)
    x = draw(rng, (2, 2 * tile, tile, 3))
    dy = draw(rng, simple_twin(layer, simple_kind).forward(x).shape)
    for _ in range(2):
        layer.weight.value += draw(rng, layer.weight.value.shape)  # in place, as Adam does
        layer.bias.value -= 1
        fast, slow = results(layer, x, dy), results(simple_twin(layer, simple_kind), x, dy)
        assert max(relative_error(fast[name], slow[name]) for name in fast) < 1e-10


@both_kinds
def test_views_of_images_in_any_order_give_the_same(kind, simple_kind, tile, rng):
    layer, simple = twins(kind, simple_kind, 3, 5, rng)
    x = draw(rng, (4, 2 * tile, tile, 3))
    dy = draw(rng, simple.forward(x).shape)
    straight = results(layer, x, dy)
    turned = results(layer, x[:, ::-1].copy()[:, ::-1], dy.transpose(3, 1, 0, 2).copy().transpose(2, 1, 3, 0))
    assert max(relative_error(turned[name], straight[name]) for name in straight) < 1e-13
