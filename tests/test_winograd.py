"""The fast path for 4x4 stride-2 convolutions: how it comes about, where it is taken, what it may not leave behind.

That its numbers are those of the plain layers is for test_fast.py and, exactly, for test_conv_properties.py to say.
"""

import math

import numpy as np
import pytest

from vae_np import VAE, backend
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.fast import winograd
from vae_np.fast.arrays import FastConv2d, FastConvTranspose2d, Workspace
from vae_np.fast.winograd import WinogradConv2d, WinogradConvTranspose2d
from vae_np.gradcheck import relative_error
from vae_np.run.benchmark import REFERENCE

pytestmark = pytest.mark.skipif(backend.NAME == "cupy", reason="a GPU takes 16 products")
# Each with the layer that only unfolds, and the rows or columns of its input that make a tile.
both_kinds = pytest.mark.parametrize(("kind", "unfolding", "tile"), [
    (WinogradConv2d, FastConv2d, 4), (WinogradConvTranspose2d, FastConvTranspose2d, 2)], ids=["down", "up"])
# Batch, tiles down and across, channels in and out.
sizes = pytest.mark.parametrize(("batch", "rows", "columns", "inputs", "outputs"), [
    (1, 1, 4, 4, 6), (2, 4, 1, 6, 4), (3, 3, 2, 5, 4), (5, 2, 2, 4, 5)])


@pytest.fixture(autouse=True)
def few_tiles_suffice(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)


def make(kind, inputs=5, outputs=5, geometry=(4, 2, 1)):
    """A layer whose weights depend on its shape alone, not on its kind."""
    (kernel_size, stride, padding), rng = geometry, np.random.default_rng(1)
    layer = kind(inputs, outputs, kernel_size, rng, stride, padding, dtype="float64")
    layer.bias.value[...] = rng.standard_normal(outputs)
    return layer


def results(layer, x, dy):
    """Everything that a layer computes, as copies: y, dx, and the gradients of weight and bias."""
    return [array.copy() for array in (layer.forward(x), layer.backward(dy), layer.weight.grad, layer.bias.grad)]


def assert_same_bits(ours, others):
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_adjoint(a, image_of_a, b, image_of_b):
    """Assert <A a, b> = <a, A* b>, up to the rounding of terms of this size."""
    rounding = 1e-13 * np.linalg.norm(image_of_a) * np.linalg.norm(b)
    assert (image_of_a * b).sum() == pytest.approx((a * image_of_b).sum(), rel=0, abs=rounding)


def test_three_products_give_two_outputs_of_a_kernel_of_two_taps():
    # y0 = b0 g0 + b1 g1 = 5 * 10 + 2 * 3 and y1 = b1 g0 + b2 g1 = 2 * 10 + 7 * 3; then the same from b2 on.
    b, g = np.array([5, 2, 7, 1, 4]), np.array([10, 3])
    tiles, kernels, y = np.zeros((3, 2), b.dtype), np.zeros((3, 1), b.dtype), np.zeros((2, 2), b.dtype)
    winograd.input_transform_1d(b, tiles)
    np.testing.assert_array_equal(tiles, [[5 - 2, 7 - 1], [2, 1], [7 - 2, 4 - 1]])
    winograd.kernel_transform_1d(g[:, None], kernels)
    np.testing.assert_array_equal(kernels, [[10], [10 + 3], [3]])
    products = tiles * kernels  # three for a tile of two outputs
    np.testing.assert_array_equal(products, [[30, 60], [26, 13], [15, 9]])
    winograd.output_transform_1d(products, y)
    np.testing.assert_array_equal(y, [[50 + 6, 70 + 3], [20 + 21, 10 + 12]])


def test_a_kernel_and_an_image_of_one_tile_by_hand():
    # Pixel (i, j) of the image is 10 i + j. The kernel has a 1 at its upper left pixel and a 2 at its lower right one,
    # which meet pixels (2 p - 1, 2 q - 1) and (2 p + 2, 2 q + 2) for the output (p, q).
    layer, x = make(WinogradConv2d, outputs=1), np.zeros((1, 4, 4, 5))
    layer.weight.value[...] = 0
    layer.weight.value[0, 0, 0], layer.weight.value[3, 3, 0], layer.bias.value[...] = 1, 2, 100
    x[0, :, :, 0] = np.add.outer(10.0 * np.arange(4), np.arange(4))
    np.testing.assert_array_equal(layer.forward(x)[0, :, :, 0], [[100 + 2 * 22, 100], [100, 100 + 11]])
    assert layer.way is layer.winograd


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_writes_to_its_second_argument_has_its_adjoint(count, rng):
    for transform, adjoint, one, other, *workspace in (
        (winograd.input_transform_1d, winograd.input_transform_1d_adjoint, (2 * count + 1, 3), (3, count, 3)),
        (winograd.kernel_transform_1d, winograd.output_transform_1d, (2, count), (3, count)),
        (winograd.kernel_transform, winograd.output_transform, (2, 2, count, 4), (3, 3, count, 4), Workspace()),
    ):
        a, b = rng.standard_normal(one), rng.standard_normal(other)
        image_of_a, image_of_b = np.full(other, np.nan), np.full(one, np.nan)  # what was there must not matter
        transform(a, image_of_a)
        adjoint(b, image_of_b, *workspace)
        assert_adjoint(a, image_of_a, b, image_of_b)


@sizes
def test_cutting_images_into_tiles_has_its_adjoint(batch, rows, columns, inputs, outputs, rng):
    x, workspace = rng.standard_normal((batch, 4 * rows, 4 * columns, inputs)), Workspace()  # as a layer has, for both
    cut = winograd.input_transform(x, workspace).copy()
    assert cut.shape == (9, batch * rows * columns, 4 * inputs)
    for _ in range(2):  # anew, and where something is left of an earlier call
        t, sums = rng.standard_normal(cut.shape), np.full(x.shape, np.nan)
        winograd.input_transform_adjoint(t, sums, workspace)
        assert_adjoint(x, cut, t, sums)


@both_kinds
@sizes
def test_each_product_multiplies_nine_times_where_unfold_multiplies_sixteen_times(
        kind, unfolding, tile, batch, rows, columns, inputs, outputs, rng, monkeypatch):
    monkeypatch.setattr(winograd, "TILES", 2 * rows * columns)  # two images at a time
    monkeypatch.setattr(winograd, "CHANNELS", 1)
    x, product, counts = rng.standard_normal((batch, rows * tile, columns * tile, inputs)), np.matmul, []

    def counted(a, b, out=None):  # (..., I, J) @ (..., J, K)
        counts.append(a.size * b.shape[-1])
        return product(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counted)
    for one in (kind, unfolding):
        layer = make(one, inputs, outputs)
        layer.backward(layer.forward(x))
        counts.append(None)
    fast, slow = counts[: counts.index(None)], counts[counts.index(None) + 1 : -1]
    assert 16 * sum(fast) == 9 * sum(slow)
    assert len(fast) == 3 * math.ceil(batch / 2) and len(slow) == 3  # y, and both gradients


def test_six_layers_of_the_reference_model_take_the_fast_path_and_its_two_ends_of_3_channels_do_not():
    model = VAE(**REFERENCE)
    model.forward(np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 128), np.float32))
    layers = [layer for layer in (*model.encoder.paths[0].layers, *model.decoder.paths[0].layers)
              if isinstance(layer, (Conv2d, ConvTranspose2d))]
    assert [layer.way is layer.winograd for layer in layers] == [False, True, True, True, True, True, True, False]
    assert layers[0].way is layers[0].by_planes and layers[-1].way is layers[-1].by_planes


@both_kinds
def test_of_few_tiles_the_kernels_would_not_be_worth_transforming(kind, unfolding, tile, rng, monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_TILES", 6)
    layer, other = make(kind), make(unfolding)
    for batch, fast in ((2, False), (3, True)):  # of two tiles each
        x = rng.standard_normal((batch, tile, 2 * tile, 5))
        dy = rng.standard_normal(other.forward(x).shape)
        assert max(map(relative_error, results(layer, x, dy), results(other, x, dy))) < 1e-13
        assert (layer.way is layer.winograd) is fast


@both_kinds
@pytest.mark.parametrize(("geometry", "size", "channels", "fast"), [
    *(((4, 2, 1), size, channels, True) for size in ((8, 12), (4, 4)) for channels in (4, 7)),
    *(((4, 2, 1), size, 4, False) for size in ((8, 6), (6, 8), (10, 4), (4, 10))), ((4, 2, 1), (8, 8), 3, False),
    *((geometry, (8, 8), 4, False) for geometry in ((3, 2, 1), (4, 1, 1), (4, 2, 0), (2, 2, 1)))])
def test_the_larger_side_must_fall_into_whole_tiles_and_all_else_unfolds(
        kind, unfolding, tile, geometry, size, channels, fast, rng):
    side = (channels, 5) if kind is WinogradConv2d else (5, channels)
    layer, other = make(kind, *side, geometry), make(unfolding, *side, geometry)
    x = rng.standard_normal((2, *(length * tile // 4 for length in size), side[0]))
    dy = rng.standard_normal(other.forward(x).shape)
    ours, others = results(layer, x, dy), results(other, x, dy)
    assert (layer.way is layer.winograd) is fast
    assert max(map(relative_error, ours, others)) < (1e-13 if fast else 1e-300)


@both_kinds
def test_neither_other_sizes_in_between_nor_nan_leave_anything_behind(kind, unfolding, tile, rng):
    layer, ways = make(kind), []
    # Sizes in tiles: some fit, some do not, and the batches are of several sizes.
    calls = [(2, 2, 3), (2, 2, 2.5), (2, 2, 3), (5, 2, 3), (1, 2, 3), (1, 0.75, 1.25), (0, 2, 3), (4, 3, 2), (2, 2, 3)]
    for batch, rows, columns in calls:
        x = rng.standard_normal((batch, int(rows * tile) or 1, int(columns * tile), 5))
        dy = rng.standard_normal(layer.forward(x).shape)
        assert np.isnan(results(layer, x * np.nan, dy * np.nan)[0]).all()
        expected = results(make(kind), x, dy)
        assert_same_bits(results(layer, x, dy), expected)
        assert_same_bits([layer.backward(dy), layer.weight.grad], expected[1:3])  # once more after the same forward
        ways.append(layer.way is layer.winograd)
    assert ways == [batch > 0 and rows == int(rows) and columns == int(columns) for batch, rows, columns in calls]


@both_kinds
def test_a_gradient_of_more_images_than_there_were_is_refused(kind, unfolding, tile, rng):
    for one in (kind, unfolding):
        layer = make(one)
        y = layer.forward(rng.standard_normal((4, tile, tile, 5)))
        with pytest.raises(ValueError, match="reshape"):
            layer.backward(np.ones((6, *y.shape[1:])))


@both_kinds
@pytest.mark.parametrize("channels", [3, 5])
def test_the_wider_dtype_of_images_and_weights_counts(kind, unfolding, tile, channels, rng):
    x = rng.integers(0, 200, (2, 2 * tile, tile, channels))
    for dtype in ("uint8", "float32", "float64"):
        for one in (kind, unfolding):
            layer = make(one, inputs=channels)
            given = layer.forward(x.astype(dtype))
            assert given.dtype == np.float64
            np.testing.assert_allclose(given, layer.forward(x.astype("float64")), rtol=1e-12)
