"""Both convolutions over geometries, sizes, dtypes and memory layouts that hypothesis draws, to the last bit.

All numbers are whole, and so small that every sum and product of them is exact in the dtype at hand, in whatever order
it is taken. Equal then means equal: no tolerance that an error could hide in, and no rounding that could fail a test.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveConv, NaiveConvTranspose

from vae_np import backend
from vae_np.backend import to_cpu, to_device, xp
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import InputError
from vae_np.fast import planes, products, winograd
from vae_np.fast.arrays import FastConv2d, FastConvTranspose2d
from vae_np.fast.winograd import WinogradConv2d, WinogradConvTranspose2d


class InPlanes:
    """A layer that goes plane by plane whatever its channels."""

    def way_for(self, shape):
        _, h, w, _ = shape
        return self.by_planes if self.geometry == (4, 2, 1) and h % 2 == w % 2 == 0 else self.unfolding


class PlanesConv2d(InPlanes, WinogradConv2d):
    pass


class PlanesConvTranspose2d(InPlanes, WinogradConvTranspose2d):
    pass


# By kind, the rows or columns of its input that fall into one tile of the fast path; 0 for kinds that have none.
TILES = {Conv2d: 0, ConvTranspose2d: 0, FastConv2d: 0, FastConvTranspose2d: 0}
if backend.NAME != "cupy":  # on a GPU, 16 products are sooner done
    TILES |= {WinogradConv2d: 4, WinogradConvTranspose2d: 2, PlanesConv2d: 2, PlanesConvTranspose2d: 1}
KINDS = pytest.mark.parametrize(("kind", "naive_kind"), [
    (kind, NaiveConvTranspose if issubclass(kind, ConvTranspose2d) else NaiveConv) for kind in TILES])
# A gradient of the weight sums at most 3 * 15 * 15 products here: below 2^24 for these limits, or 2^53 in float64, the
# whole numbers that the dtypes hold exactly. Sums in float64 are too large for float32: one that is taken there shows.
# The Winograd layers keep to the same bound. They sum up to 4 numbers before they multiply: that makes products up to 4
# times larger in a gradient of the weight, which has one for 4 places, and up to 16 times larger in what is added back
# into images, but over 4 channels only. Nothing is ever divided, so that all stays whole.
LIMITS = {"float32": 2**6, "float64": 2**20}


@pytest.fixture(autouse=True, scope="module")
def every_kind_as_it_is():
    """Conv2d makes a Conv2d, and small examples take the fast path, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "FASTER", {})
        patch.setattr(winograd, "FEWEST_CHANNELS", 1)
        patch.setattr(winograd, "FEWEST_TILES", 1)
        patch.setattr(winograd, "TILES", 2)  # and few images more than one group
        patch.setattr(winograd, "CHANNELS", 1)
        patch.setattr(planes, "PIXELS", 50)
        if backend.NAME != "cupy":  # and products of more than one piece
            patch.setattr(products, "has_small_kernels", lambda: True)
            patch.setattr(products, "parts", products.parts.__wrapped__)
            for name, least in {"LEAST": 1, "WIDEST": 2, "LONGEST": 3, "LIMIT": 20, "MANY": 4}.items():
                patch.setattr(products, name, least)
        yield


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
    earlier: str  # what the layer has worked on before
    seed: int

    def layers(self, kind, naive_kind, rng):
        """A layer and the same one in loops."""
        kernel_size, stride, padding = self.geometry
        layer = kind(self.x_shape[-1], self.outputs, kernel_size, rng, stride, padding, dtype=self.dtype)
        weight, bias = self.numbers(rng, layer.weight.value.shape), self.numbers(rng, layer.bias.value.shape)
        layer.weight.value[...], layer.bias.value[...] = to_device(weight), to_device(bias)
        return layer, naive_kind(weight.astype("float64"), bias.astype("float64"), stride, padding)

    def work_before(self, layer, naive, rng):
        """Fill the layer's workspaces with what has to be overwritten."""
        n, h, w, c = self.x_shape
        for shape in {"nothing": [], "the same size": [self.x_shape], "another": [(n + 1, w, h, c)]}[self.earlier]:
            layer.forward(to_device(self.numbers(rng, shape)))
            layer.backward(to_device(self.numbers(rng, naive.output_shape(shape))))

    def numbers(self, rng, shape):
        limit = LIMITS[self.dtype]
        return rng.integers(-limit, limit, shape, endpoint=True).astype(self.dtype)


@functools.cache  # to build a strategy takes as long as to draw from it
def cases(kind):
    """Cases with images of 1 to 12 rows and columns; where the kind cuts them into tiles, most fit, or nearly."""
    anything = cases_of(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2)), st.integers(1, 11))
    if not TILES[kind]:
        return anything
    whole_tiles = cases_of(st.just((4, 2, 1)), st.integers(1, 3).map(lambda count: count * TILES[kind]))
    nearly = cases_of(st.tuples(st.just(4), st.just(2), st.sampled_from([1, 0, 2])), st.sampled_from([4, 5, 7, 8]))
    return st.integers(0, 5).flatmap([*3 * [whole_tiles], nearly, nearly, anything].__getitem__)


def cases_of(geometry, size):
    channels, layouts = st.integers(1, 4), st.sampled_from(list(LAYOUTS))
    return st.builds(
        Case, geometry=geometry, x_shape=st.tuples(st.integers(1, 3), size, size, channels), outputs=channels,
        dtype=st.sampled_from(list(LIMITS)), x_layout=layouts, dy_layout=layouts,
        earlier=st.sampled_from(["nothing", "the same size", "another"]), seed=st.integers(0, 2**32 - 1))  # fmt: skip


@KINDS
@given(data=st.data())
@settings(max_examples=100, deadline=None, print_blob=True)
def test_a_layer_is_its_definition_in_loops(kind, naive_kind, data):
    case = data.draw(cases(kind))
    rng = np.random.default_rng(case.seed)
    layer, naive = case.layers(kind, naive_kind, rng)
    y_shape = naive.output_shape(case.x_shape)
    if min(y_shape) < 1:
        with pytest.raises(InputError):
            layer.forward(to_device(case.numbers(rng, case.x_shape)))
        return
    case.work_before(layer, naive, rng)
    x = LAYOUTS[case.x_layout](to_device(case.numbers(rng, case.x_shape)))
    dy = LAYOUTS[case.dy_layout](to_device(case.numbers(rng, y_shape)))
    expected = naive.forward(to_cpu(x)), *naive.backward(to_cpu(x).astype("float64"), to_cpu(dy).astype("float64"))
    given_before = [(array, array.copy()) for array in (x, dy, layer.weight.value, layer.bias.value)]

    y = layer.forward(x)
    for _ in range(2):  # backward overwrites gradients, and may be called again
        dx = layer.backward(dy)
        results = y, dx, layer.weight.grad, layer.bias.grad
        assert {array.dtype for array in results} == {np.dtype(case.dtype)}
        for array, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(to_cpu(array), right)
    layer.backward(layer.forward(x + 1))  # what comes later must not overwrite results
    for array, before in [*given_before, (y, expected[0]), (dx, expected[1])]:
        np.testing.assert_array_equal(to_cpu(array), to_cpu(before))


@pytest.mark.parametrize("kind", [kind for kind, tile in TILES.items() if tile])
def test_enough_examples_of_a_layer_take_its_fast_path_and_enough_do_not(kind):
    # What the test above says of these layers is worth as much as the examples that get there.
    fitting = []

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(case=cases(kind))
    def look(case):
        layer, _ = case.layers(kind, NaiveConv, np.random.default_rng(0))
        try:
            layer.forward(to_device(np.zeros(case.x_shape, case.dtype)))
        except InputError:
            return
        fitting.append(layer.way is not layer.unfolding)

    look()
    assert 0.25 < np.mean(fitting) < 0.9
