"""The check itself: it must find right gradients right and wrong ones wrong."""

import numpy as np
import pytest

from vae_np.backend import to_device
from vae_np.gradcheck import check_direction, check_layer, numerical_gradient, relative_error
from vae_np.layers import Dense, Layer


def test_relative_error():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.array([3.0, 4.0]), np.array([-3.0, -4.0])) == 1
    assert relative_error(np.array([1.0]), np.array([3.0])) == 0.5


def test_numerical_gradient_of_a_known_function():
    x = to_device(np.array([[0.5, -2.0, 3.0]]))
    gradient = numerical_gradient(lambda: (x**3).sum(), x)
    np.testing.assert_allclose(gradient, [[0.75, 12.0, 27.0]], rtol=1e-8)
    np.testing.assert_array_equal(x, [[0.5, -2.0, 3.0]])


class Square(Layer):
    """y = x^2 with a gradient that is off by a factor."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, dy):
        return self.factor * 2 * self.x * dy


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False), (-1.0, False), (0.0, False)])
def test_a_wrong_gradient_is_found(factor, passes, rng):
    error = check_layer(Square(factor), to_device(rng.standard_normal((3, 4))), rng)["input"]
    assert (error < 1e-6) is passes


def test_a_transposed_gradient_is_found(rng):
    class Transposed(Dense):
        def backward(self, dy):
            dx = super().backward(dy)
            self.weight.grad[...] = self.weight.grad.T.copy()
            return dx

    layer = Transposed(4, 4, rng, dtype="float64")
    errors = check_layer(layer, to_device(rng.standard_normal((3, 4))), rng)
    assert errors["weight"] > 1e-2
    assert max(errors["input"], errors["bias"]) < 1e-6


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False)])
def test_one_direction_finds_a_wrong_gradient(factor, passes, rng):
    values = to_device(rng.standard_normal(50))
    before = values.copy()
    error = check_direction(lambda: (values**3).sum(), values, factor * 3 * values**2, rng)
    assert (error < 1e-6) is passes
    np.testing.assert_array_equal(values, before)
