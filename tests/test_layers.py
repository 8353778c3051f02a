"""Dense, LeakyReLU, Reshape, Sequential: values, gradients, and that nothing is written to what they are given."""

import math

import numpy as np
import pytest

from vae_np.backend import to_cpu, to_device
from vae_np.errors import InputError
from vae_np.gradcheck import check_layer, layer_examples
from vae_np.layers import Dense, Layer, LeakyReLU, Parameter, Reshape, Sequential, bind, pack, random_weight, sum_rows

EXAMPLES = layer_examples(np.random.default_rng(0))  # every kind of layer: a test of gradcheck sees to that
every_layer = pytest.mark.parametrize(("layer", "shape"), EXAMPLES, ids=[type(layer).__name__ for layer, _ in EXAMPLES])


@every_layer
def test_gradients(layer, shape, rng):
    x = rng.standard_normal(shape)
    x += 0.1 * np.sign(x)  # off the kink at 0
    errors = check_layer(layer, to_device(x), rng)
    assert max(errors.values()) < 1e-6, errors


@every_layer
def test_backward_overwrites_and_does_not_add(layer, shape, rng):
    x = to_device(rng.standard_normal(shape))
    dy = to_device(rng.standard_normal(layer.forward(x).shape))
    layer.backward(dy)
    before = [to_cpu(parameter.grad).copy() for parameter in layer.parameters]
    layer.forward(x)
    layer.backward(dy)
    for parameter, gradient in zip(layer.parameters, before, strict=True):
        np.testing.assert_array_equal(to_cpu(parameter.grad), gradient)


@every_layer
def test_backward_parameters_gives_the_gradients_of_backward(layer, shape, rng):
    x = to_device(rng.standard_normal(shape))
    dy = to_device(rng.standard_normal(layer.forward(x).shape))
    layer.backward(dy)
    before = [to_cpu(parameter.grad).copy() for parameter in layer.parameters]
    for parameter in layer.parameters:
        parameter.grad[...] = np.nan
    layer.forward(x)
    layer.backward_parameters(dy)
    for parameter, gradient in zip(layer.parameters, before, strict=True):
        np.testing.assert_array_equal(to_cpu(parameter.grad), gradient)


@every_layer
def test_inputs_are_left_alone(layer, shape, rng):
    x = rng.standard_normal(shape)
    x.flags.writeable = False
    y = layer.forward(to_device(x))
    dy = rng.standard_normal(y.shape)
    dy.flags.writeable = False
    layer.backward(to_device(dy))  # an in-place write would have raised


def test_dense_by_hand(rng):
    layer = Dense(2, 2, rng, dtype="float64")
    layer.weight.value[...] = to_device(np.array([[1.0, 2.0], [3.0, 4.0]]))
    layer.bias.value[...] = to_device(np.array([10.0, 20.0]))
    np.testing.assert_array_equal(to_cpu(layer.forward(to_device(np.array([[1.0, -1.0]])))), [[8.0, 18.0]])
    np.testing.assert_array_equal(to_cpu(layer.backward(to_device(np.array([[1.0, 1.0]])))), [[3.0, 7.0]])
    np.testing.assert_array_equal(to_cpu(layer.weight.grad), [[1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_array_equal(to_cpu(layer.bias.grad), [1.0, 1.0])


def test_leaky_relu_by_hand():
    layer = LeakyReLU(0.2)
    np.testing.assert_allclose(to_cpu(layer.forward(to_device(np.array([[-5.0, 0.0, 3.0]])))), [[-1.0, 0.0, 3.0]])
    np.testing.assert_allclose(to_cpu(layer.backward(to_device(np.array([[10.0, 10.0, 10.0]])))), [[2.0, 2.0, 10.0]])


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


def test_random_weight_has_the_deviation_it_promises(rng):
    weight = to_cpu(random_weight(rng, (400, 300), fan_in=400, gain=math.sqrt(2), dtype="float32"))
    assert weight.dtype == np.float32
    assert abs(weight.mean()) < 1e-3
    assert math.isclose(weight.std(), math.sqrt(2 / 400), rel_tol=0.02)


def test_the_gain_keeps_the_scale_through_many_layers(rng):
    activation = LeakyReLU(0.2)
    layers = []
    for _ in range(10):
        layers += [Dense(300, 300, rng, gain=activation.gain), LeakyReLU(0.2)]
    y = to_cpu(Sequential(*layers).forward(to_device(rng.standard_normal((200, 300), dtype=np.float32))))
    assert 0.8 < np.sqrt(np.mean(y**2)) < 1.25


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3, 3), (2, 7, 4)])
def test_sum_rows(shape, rng):
    dy = rng.standard_normal(shape)
    np.testing.assert_allclose(to_cpu(sum_rows(to_device(dy))), dy.sum(axis=tuple(range(dy.ndim - 1))), rtol=1e-12)


def test_reprs(rng):
    network = Sequential(Dense(6, 8, rng), LeakyReLU(0.2), Reshape(2, 4))
    assert repr(network) == "Sequential(\n  Dense(6 -> 8)\n  LeakyReLU(0.2)\n  Reshape(2, 4)\n)"
    assert repr(network.parameters[0]) == "Parameter(weight, (6, 8), float32)"


class Shift(Layer):
    """A layer with a bias that knows nothing of activations."""

    def __init__(self, count):
        self.bias = Parameter("bias", to_device(np.zeros(count)))
        self.parameters = (self.bias,)

    def forward(self, x):
        return x + self.bias.value

    def backward(self, dy):
        self.bias.grad[...] = sum_rows(dy)
        return dy


@pytest.mark.parametrize("layer", [Shift(4), Dense(4, 4, np.random.default_rng(0), dtype="float64")], ids=repr)
def test_sequential_applies_an_activation_whether_or_not_the_layer_before_it_can(layer, rng):
    x = to_device(rng.standard_normal((3, 4)))
    alone = to_cpu(layer.forward(x))
    together = to_cpu(Sequential(layer, LeakyReLU(0.2)).forward(x))
    assert (alone < 0).any()
    np.testing.assert_allclose(together, np.where(alone > 0, alone, 0.2 * alone), rtol=1e-12)


@pytest.mark.parametrize("slope", [-0.1, 1.5, math.nan])
def test_a_slope_that_leaky_relu_cannot_have_is_refused(slope):
    with pytest.raises(InputError, match="slope of LeakyReLU must be between 0 and 1"):
        LeakyReLU(slope)
