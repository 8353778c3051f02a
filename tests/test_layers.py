"""Dense, LeakyReLU, Reshape, Sequential: values and gradients by hand, and what every layer promises.

Finite differences of every layer are in the table of gradients.
"""

import math

import numpy as np
import pytest

from vae_np.backend import to_cpu, to_device
from vae_np.errors import InputError
from vae_np.layers import Dense, Layer, LeakyReLU, Parameter, Reshape, Sequential, bind, pack
from vae_np.losses import Bernoulli
from vae_np.run.gradient_table import layer_examples

pytestmark = pytest.mark.usefixtures("way")


# Every kind of layer: a test of the table sees to that.
@pytest.mark.parametrize("number", range(len(layer_examples(np.random.default_rng(0)))))
def test_gradients_are_overwritten_and_nothing_that_was_given_or_returned(number, rng):
    layer, shape = layer_examples(rng)[number]
    x = to_device(rng.standard_normal(shape))
    dy = to_device(rng.standard_normal(layer.forward(x).shape))
    kept = [(array, array.copy()) for array in (x, dy, *(parameter.value for parameter in layer.parameters))]
    kept += [(array, array.copy()) for array in (layer.forward(x), layer.backward(dy))]
    gradients = [parameter.grad.copy() for parameter in layer.parameters]
    for backward in (layer.backward, layer.backward_parameters):
        layer.backward(layer.forward(x + 1))  # leaves other gradients behind
        layer.forward(x)
        backward(dy)
        for parameter, gradient in zip(layer.parameters, gradients, strict=True):
            np.testing.assert_array_equal(to_cpu(parameter.grad), to_cpu(gradient))
    for array, before in kept:
        np.testing.assert_array_equal(to_cpu(array), to_cpu(before))


def test_dense_by_hand(rng):
    layer = Dense(2, 2, rng, dtype="float64")
    layer.weight.value[...] = to_device(np.array([[1.0, 2.0], [3.0, 4.0]]))
    layer.bias.value[...] = to_device(np.array([10.0, 20.0]))
    np.testing.assert_array_equal(to_cpu(layer.forward(to_device(np.array([[1.0, -1.0]])))), [[8.0, 18.0]])
    np.testing.assert_array_equal(to_cpu(layer.backward(to_device(np.array([[1.0, 2.0]])))), [[5.0, 11.0]])
    np.testing.assert_array_equal(to_cpu(layer.weight.grad), [[1.0, 2.0], [-1.0, -2.0]])
    np.testing.assert_array_equal(to_cpu(layer.bias.grad), [1.0, 2.0])


def test_leaky_relu_by_hand():
    layer = LeakyReLU(0.25)
    np.testing.assert_array_equal(to_cpu(layer.forward(to_device(np.array([[-4.0, 0.0, 3.0]])))), [[-1.0, 0.0, 3.0]])
    np.testing.assert_array_equal(to_cpu(layer.backward(to_device(np.array([[8.0, 8.0, 8.0]])))), [[2.0, 2.0, 8.0]])


def test_float32_stays_float32(rng):
    network = Sequential(Dense(6, 8, rng), LeakyReLU(), Reshape(2, 4), Reshape(8), Dense(8, 3, rng))
    y = network.forward(to_device(rng.standard_normal((4, 6), dtype=np.float32)))
    dx = network.backward(y)
    assert {a.dtype for a in (y, dx, *(p.grad for p in network.parameters))} == {np.dtype("float32")}


def test_pack_keeps_values_and_makes_views(rng):
    parameters = [Parameter("a", to_device(rng.standard_normal((2, 3)))), Parameter("b", to_device(np.arange(4.0)))]
    before = [to_cpu(p.value).copy() for p in parameters]
    values, grads = pack(parameters)
    assert values.shape == grads.shape == (10,)
    for parameter, value in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(to_cpu(parameter.value), value)
    values += 1
    grads[...] = 7
    np.testing.assert_array_equal(to_cpu(parameters[1].value), np.arange(4.0) + 1)
    assert float(parameters[0].grad[1, 2]) == 7
    other = to_device(np.zeros(10))
    bind(parameters, values, other)
    parameters[1].grad[...] = 5
    np.testing.assert_array_equal(to_cpu(other), [0] * 6 + [5] * 4)


def test_reprs(rng):
    network = Sequential(Dense(6, 8, rng), LeakyReLU(0.2), Reshape(2, 4))
    assert repr(network) == "Sequential(\n  Dense(6 -> 8)\n  LeakyReLU(0.2)\n  Reshape(2, 4)\n)"
    assert repr(network.parameters[0]) == "Parameter(weight, (6, 8), float32)"


def test_sequential_is_one_layer_after_the_other(rng):
    first, second = Dense(3, 4, rng, dtype="float64"), Dense(4, 2, rng, dtype="float64")
    network, x, dy = Sequential(first, second), *(to_device(rng.standard_normal(shape)) for shape in ((5, 3), (5, 2)))
    assert network.parameters == (*first.parameters, *second.parameters)
    np.testing.assert_array_equal(to_cpu(network.forward(x)), to_cpu(second.forward(first.forward(x))))
    np.testing.assert_array_equal(to_cpu(network.backward(dy)), to_cpu(first.backward(second.backward(dy))))


@pytest.mark.parametrize("kind", [Layer, Bernoulli])
def test_an_argument_that_a_class_does_not_take_is_refused(kind):
    with pytest.raises(TypeError):
        kind(0.1)


@pytest.mark.parametrize("slope", [-0.1, 1.5, math.nan])
def test_a_slope_that_leaky_relu_cannot_have_is_refused(slope):
    with pytest.raises(InputError, match="slope of LeakyReLU must be between 0 and 1"):
        LeakyReLU(slope)


def test_reshape_keeps_the_size_of_the_batch():
    with pytest.raises(ValueError):
        Reshape(4).forward(to_device(np.zeros((2, 8))))
