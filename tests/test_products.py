"""Products in pieces: that they are products, of what sizes, and where none is cut.

Within the layers, test_conv_properties.py tries them with pieces of one or two numbers, to the last bit.
"""

import types

import numpy as np
import pytest

from vae_np import backend
from vae_np.fast import products
from vae_np.fast.arrays import FastDense
from vae_np.fast.products import (
    LIMIT,
    MANY,
    WIDEST,
    has_small_kernels,
    parts,
    prepared,
    product,
    product_of_columns,
    strips,
)
from vae_np.fast.winograd import Winograd

pytestmark = pytest.mark.skipif(backend.NAME == "cupy", reason="a GPU takes its products whole")
# Rows, sums and columns: of layers, of one piece, of none, and what cannot be cut evenly.
SIZES = pytest.mark.parametrize(("m", "k", "n"), [
    (1024, 64, 32), (512, 128, 96), (48, 2048, 24), (16, 16, 16), (1, 700, 130), (0, 64, 64), (64, 0, 64),
    (1013, 300, 67), (600, 500, 3), (0, 2048, 16), (16, 2048, 0)])


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch):
    """As on a core with AVX-512; where there is none, pieces are slower, and no less right."""
    monkeypatch.setattr(products, "has_small_kernels", lambda: True)


def whole_numbers(rng, *shape):
    """Products and sums of these are exact in float32, so that no order of summation can be told from another."""
    return rng.integers(-8, 9, shape).astype(np.float32)


def unwritten(*shape):
    return np.full(shape, np.nan, np.float32)


def seen(function, *arrays):
    """The (M, K, N) of each call of np.matmul that a function makes, in place of its result."""
    made, matmul = [], np.matmul

    def spy(a, b, out=None):
        assert a.dtype == b.dtype == out.dtype
        made.append((*a.shape[-2:], b.shape[-1]))
        return matmul(a, b, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", spy)
        function(*arrays)
    return made


@SIZES
@pytest.mark.parametrize("batch", [(), (9,)])
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("rows", [0, MANY])
def test_a_product_in_pieces_is_the_product(m, k, n, batch, order, rows):
    rng = np.random.default_rng(0)
    a, b, out = whole_numbers(rng, *batch, m, k), whole_numbers(rng, *batch, k, n), unwritten(*batch, m, n)
    expected = a @ b
    if order == "columns":  # the same numbers, the other way round in memory
        a, b, out = (np.ascontiguousarray(c.swapaxes(-1, -2)).swapaxes(-1, -2) for c in (a, b, out))
    assert product(a, prepared(b, rows), out) is out
    np.testing.assert_array_equal(out, expected)


@SIZES
@pytest.mark.parametrize("batch", [(), (9,)])
def test_so_is_that_of_columns(m, k, n, batch):
    rng = np.random.default_rng(0)
    a, b, out = whole_numbers(rng, *batch, k, m), whole_numbers(rng, *batch, k, n), unwritten(*batch, m, n)
    product_of_columns(a, b, out)
    np.testing.assert_array_equal(out, a.swapaxes(-1, -2) @ b)
    a = np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)  # as planes have it
    product_of_columns(a, b, out)
    np.testing.assert_array_equal(out, a.swapaxes(-1, -2) @ b)


@pytest.mark.parametrize(("m", "k", "n"), [
    (1024, 64, 32), (512, 128, 64), (256, 512, 256), (4096, 48, 16), (1024, 64, 64), (16384, 48, 64), (256, 1024, 512)])
def test_pieces_are_as_small_as_openblas_wants_them(m, k, n):
    a, b, out = np.ones((9, m, k), "f4"), np.ones((9, k, n), "f4"), np.empty((9, m, n), "f4")
    made = seen(product, a, prepared(b, MANY), out)
    made += seen(product_of_columns, a, out, np.empty((9, k, n), "f4"))
    assert len(made) == 2  # one call makes all of them
    assert all(rows * sums * columns <= LIMIT and columns <= WIDEST for rows, sums, columns in made), made


def test_elsewhere_products_are_made_whole(monkeypatch):
    a, b, out = np.ones((9, 1024, 64), "f4"), np.ones((9, 64, 32), "f4"), np.empty((9, 1024, 32), "f4")
    assert seen(product, a, prepared(b, MANY), out) == [(256, 64, 32)]  # 512 * 64 * 32 is more than a million
    monkeypatch.setattr(products, "has_small_kernels", lambda: False)
    assert seen(product, a, prepared(b, MANY), out) == [(1024, 64, 32)]


def test_strips_are_a_view_until_many_rows_are_worth_a_copy():
    b = np.arange(32 * 192, dtype="f4").reshape(32, 192)
    assert np.shares_memory(strips(b), b)
    assert strips(b).shape == (3, 32, 64)
    few, many = prepared(b.T, MANY - 1), prepared(b.T, MANY)
    assert few.shape == (1, 192, 32)
    assert np.shares_memory(few, b)
    assert many.flags.c_contiguous
    assert not np.shares_memory(many, b)
    np.testing.assert_array_equal(prepared(b, MANY), [b[:, :64], b[:, 64:128], b[:, 128:]])


def test_what_small_kernels_do_not_read_stays_whole():
    a, b, out = np.ones((1024, 64), "f4"), np.ones((32, 64), "f4"), np.empty((1024, 32), "f4")
    assert seen(product, a, prepared(b.T, MANY), out) == [(256, 64, 32)]  # of a copy, in runs
    assert seen(product, a, prepared(b.T, 0), out) == [(1024, 64, 32)]
    assert seen(product, a, strips(b.T.copy()), np.empty((32, 1024), "f4").T) == [(1024, 64, 32)]


def test_float32_stays_float32():
    a, b, out = np.ones((2048, 48), "f4"), np.ones((2048, 16), "f4"), np.empty((48, 16), "f4")
    assert {array.dtype for array in (strips(b), prepared(b, MANY), product_of_columns(a, b, out))} == {np.dtype("f4")}


@pytest.mark.parametrize(("number", "limit", "expected"), [
    (0, 64, 1), (15, 64, 1), (16, 64, 1), (64, 64, 1), (128, 64, 2), (96, 64, 2), (192, 64, 3), (1013, 64, 1),
    (96, 15, 1), (2048, 1024, 2), (148, 61, 4)])
def test_a_number_is_cut_into_few_equal_parts_or_not_at_all(number, limit, expected):
    assert parts(number, limit) == expected
    assert number % expected == 0


@pytest.mark.parametrize(("libraries", "expected"), [
    ([{"internal_api": "openblas", "architecture": "SkylakeX"}], True),
    ([{"internal_api": "openblas", "architecture": "Cooperlake"}], True),
    ([{"internal_api": "blis"}, {"internal_api": "openblas", "architecture": "SapphireRapids"}], True),
    ([{"internal_api": "openblas", "architecture": "Haswell"}], False),
    ([{"internal_api": "openblas", "architecture": "neoversen1"}], False),
    ([{"internal_api": "mkl"}], False),
    ([], False),
])
def test_only_openblas_on_avx512_has_small_kernels(libraries, expected, monkeypatch):
    found = [types.SimpleNamespace(info=lambda one=one: one) for one in libraries]
    monkeypatch.setattr(products, "blas", lambda: types.SimpleNamespace(lib_controllers=found))
    assert has_small_kernels.__wrapped__() is expected


@pytest.mark.parametrize(("count", "expected"), [(7, []), (8, [(40, 70, 8)]), (24, [(40, 70, 24)]), (25, [])])
def test_with_few_rows_the_weight_of_a_dense_layer_comes_first(count, expected):
    layer = FastDense(70, 40, np.random.default_rng(0))
    assert seen(layer.forward, np.ones((count, 70), "f4")) == expected  # the plain one writes x @ W
    assert (70, 40, count) in seen(layer.backward, np.ones((count, 40), "f4")) or not expected


@pytest.mark.parametrize(("images", "copied"), [(8, False), (128, True)])
def test_many_tiles_are_multiplied_with_a_copy(images, copied):
    way, matrix = Winograd((4, 2, 1)), np.ones((9, 32, 24), "f4")
    made = way.prepared(matrix.swapaxes(-1, -2), np.empty((images, 8, 8, 8), "f4"))  # of 4 tiles an image
    assert np.shares_memory(made, matrix) != copied
    assert made.flags.c_contiguous == copied
