"""Both convolutions over geometries, sizes, dtypes and memory layouts that hypothesis draws, to the last bit.

All numbers are whole, and so small that every sum and product of them is exact in the dtype at hand, in whatever order
it is taken. Equal then means equal: no tolerance that an error could hide in, and no rounding that could fail a test.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive import NaiveConv, NaiveConvTranspose

from vae_np.backend import to_cpu, to_device, xp
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import InputError
from vae_np.fast.winograd import WinogradConv2d, WinogradConvTranspose2d

# By kind, the rows or columns of its input that fall into one tile of the fast path; 0 for kinds that have none.
TILES = {Conv2d: 0, ConvTranspose2d: 0, WinogradConv2d: 4, WinogradConvTranspose2d: 2}
KINDS = pytest.mark.parametrize(("kind", "naive_kind"), [
    (kind, NaiveConvTranspose if issubclass(kind, ConvTranspose2d) else NaiveConv) for kind in TILES])
# A gradient of the weight sums at most 3 * 24 * 24 products here: below 2^24 for these limits, or 2^53 in float64, the
# whole numbers that the dtypes hold exactly. Sums in float64 are too large for float32: one that is taken there shows.
# The Winograd layers keep to the same bound. They sum up to 4 numbers before they multiply: that makes products up to 4
# times larger in a gradient of the weight, which has one for 4 places, and up to 16 times larger in what is added back
# into images, but over 4 channels only. Nothing is ever divided, so that all stays whole.
LIMITS = {"float32": 2**6, "float64": 2**20}


def reverse(a):
    return a[::-1, ::-1, ::-1, ::-1]


def spread(a):
    wide = xp.full([2 * n for n in a.shape], math.nan, a.dtype)  # the gaps poison whatever is made of them
    wide[::2, ::2, ::2, ::2] = a
    return wide[::2, ::2, ::2, ::2]


# The same numbers in another order in memory.
LAYOUTS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: a.T.copy().T,
    "reversed": lambda a: reverse(reverse(a).copy()),
    "every second": spread,
}


@dataclass
class Case:
    """What hypothesis draws, and prints for an example that fails. The seed decides the numbers in the arrays."""

    geometry: tuple  # kernel size, stride, padding
    x_shape: tuple
    outputs: int
    dtype: str
    x_layout: str
    dy_layout: str
    has_worked_before: bool
    seed: int

    def layers(self, kind, naive_kind, rng):
        """A layer and the same one in loops."""
        kernel_size, stride, padding = self.geometry
        layer = kind(self.x_shape[-1], self.outputs, kernel_size, rng, stride, padding, dtype=self.dtype)
        weight, bias = self.numbers(rng, layer.weight.value.shape), self.numbers(rng, layer.bias.value.shape)
        layer.weight.value[...], layer.bias.value[...] = to_device(weight), to_device(bias)
        return layer, naive_kind(weight.astype("float64"), bias.astype("float64"), stride, padding)

    def build(self, kind, naive_kind):
        """A layer, the same one in loops, x, and dy; discards the example if x is too small."""
        rng = np.random.default_rng(self.seed)
        layer, naive = self.layers(kind, naive_kind, rng)
        y_shape = naive.output_shape(self.x_shape)
        assume(min(y_shape) > 0)
        if self.has_worked_before:  # with workspaces full of what has to be overwritten
            layer.forward(to_device(self.numbers(rng, self.x_shape)))
            layer.backward(to_device(self.numbers(rng, y_shape)))
        x = LAYOUTS[self.x_layout](to_device(self.numbers(rng, self.x_shape)))
        dy = LAYOUTS[self.dy_layout](to_device(self.numbers(rng, y_shape)))
        return layer, naive, x, dy

    def numbers(self, rng, shape):
        limit = LIMITS[self.dtype]
        return rng.integers(-limit, limit, shape, endpoint=True).astype(self.dtype)


@functools.cache  # to build a strategy takes as long as to draw from it
def cases(largest, kind):
    """Cases with images of 1 to `largest` rows and columns, mostly of whole tiles where the kind cuts images into them.

    The rest goes to the simple layers, where other examples go, too.
    """
    anything = cases_of(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2)), st.integers(1, largest))
    tile = TILES[kind]
    if not tile:
        return anything
    whole_tiles = cases_of(st.just((4, 2, 1)), st.integers(1, (largest + 1) // 4).map(lambda count: count * tile))
    return st.integers(0, 4).flatmap(lambda choice: whole_tiles if choice else anything)  # four in five, about


def cases_of(geometry, size):
    channels, layouts = st.integers(1, 4), st.sampled_from(list(LAYOUTS))
    return st.builds(
        Case, geometry=geometry, x_shape=st.tuples(st.integers(1, 3), size, size, channels), outputs=channels,
        dtype=st.sampled_from(list(LIMITS)), x_layout=layouts, dy_layout=layouts,
        has_worked_before=st.booleans(), seed=st.integers(0, 2**32 - 1))  # fmt: skip


def examples(count):
    return settings(max_examples=count, deadline=None, print_blob=True)


@KINDS
@given(data=st.data())
@examples(70)
def test_forward_and_backward_are_their_definitions_in_loops(kind, naive_kind, data):
    case = data.draw(cases(7, kind))
    layer, naive, x, dy = case.build(kind, naive_kind)
    x_values, dy_values = to_cpu(x).astype("float64"), to_cpu(dy).astype("float64")
    np.testing.assert_array_equal(to_cpu(layer.forward(x)), naive.forward(x_values))
    dx, dweight, dbias = naive.backward(x_values, dy_values)
    np.testing.assert_array_equal(to_cpu(layer.backward(dy)), dx)
    np.testing.assert_array_equal(to_cpu(layer.weight.grad), dweight)
    np.testing.assert_array_equal(to_cpu(layer.bias.grad), dbias)


@KINDS
@given(data=st.data())
@examples(60)
def test_gradients_fit_a_map_that_is_linear_in_the_image_and_in_the_weight(kind, naive_kind, data):
    case = data.draw(cases(20, kind))
    # y - b is linear in x: for every x, <y - b, dy> is <x, g> with one and the same g, and that is the gradient. It is
    # linear in the weight, too, where the same holds. This proves gradients by what forward returns, without finite
    # differences. But each example compares one number only; the test above looks at every element.
    layer, _, x, dy = case.build(kind, naive_kind)
    bias = layer.bias.value
    change = inner(layer.forward(x) - bias, dy)
    assert inner(x, layer.backward(dy)) == change
    assert inner(layer.weight.value, layer.weight.grad) == change
    assert inner(bias, layer.bias.grad) == inner(xp.broadcast_to(bias, dy.shape), dy)


def inner(a, b):
    """The sum of a * b in Python's whole numbers, which have room for it."""
    return sum(int(p) * int(q) for p, q in zip(to_cpu(a).ravel().tolist(), to_cpu(b).ravel().tolist(), strict=True))


@KINDS
@given(data=st.data())
@examples(40)
def test_dtypes_stay_and_nothing_that_was_given_or_returned_changes(kind, naive_kind, data):
    case = data.draw(cases(12, kind))
    layer, _, x, dy = case.build(kind, naive_kind)
    kept = []  # pairs of an array and its copy

    def keep(array):
        kept.append((array, array.copy()))
        return array

    for array in (x, dy, layer.weight.value, layer.bias.value):
        keep(array)
    y = keep(layer.forward(x))
    dx = keep(layer.backward(dy))
    layer.backward(layer.forward(x + 1))  # what comes later must not overwrite results
    for array, copy in kept:
        np.testing.assert_array_equal(to_cpu(array), to_cpu(copy))
    assert {array.dtype for array in (y, dx, layer.weight.grad, layer.bias.grad)} == {np.dtype(case.dtype)}
    assert (y.shape, dx.shape) == (dy.shape, x.shape)


@KINDS
@given(data=st.data())
@examples(40)
def test_an_image_that_leaves_no_output_raises_input_error_and_every_other_gives_one(kind, naive_kind, data):
    case = data.draw(cases(5, kind))
    rng = np.random.default_rng(case.seed)
    layer, naive = case.layers(kind, naive_kind, rng)
    expected = naive.output_shape(case.x_shape)
    x = to_device(case.numbers(rng, case.x_shape))
    if min(expected) > 0:
        assert layer.forward(x).shape == expected
    else:
        with pytest.raises(InputError):
            layer.forward(x)


@pytest.mark.parametrize("kind", [kind for kind, tile in TILES.items() if tile])
def test_most_examples_of_a_winograd_layer_take_its_fast_path_and_some_do_not(kind):
    # What the tests above say of these layers is worth as much as the examples that get there.
    fitting = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(case=cases(7, kind))
    def look(case):
        layer, _ = case.layers(kind, NaiveConv, np.random.default_rng(0))
        try:
            layer.forward(to_device(np.zeros(case.x_shape, case.dtype)))
        except InputError:
            return
        fitting.append(layer.fast)

    look()
    assert 0.5 < np.mean(fitting) < 1
