"""Parameter, Layer and the layers without a convolution: Dense, LeakyReLU, Reshape, Sequential, Sum.

A layer is a map and its adjoint: forward(x) -> y keeps what backward(dy) -> dx needs. dy is the gradient of the loss
with respect to y, dx the one with respect to x. backward overwrites the gradients of the layer's parameters (it does
not add to them). Neither ever writes to an array that it was given or has returned, and nor may who called them.
What forward returns depends on nothing that it keeps, so that several threads may call it at a time.
"""

import math
import textwrap

from vae_np.backend import Replaceable, to_device, xp
from vae_np.errors import InputError


class Parameter:
    """An array to be learned and its gradient: views into flat arrays, once packed (see pack); write to grad[...]."""

    def __init__(self, name, value):
        self.name = name
        self.value = value
        self.grad = xp.zeros_like(value)

    def __repr__(self):
        return f"Parameter({self.name}, {self.value.shape}, {self.value.dtype})"


def bind(parameters, values, grads):
    """Make every parameter a view into two flat arrays: its value into `values`, its gradient into `grads`.

    What Adam does is then a few operations on whole arrays. What the parameters held before is forgotten; `pack`
    keeps it.
    """
    start = 0
    for parameter in parameters:
        stop = start + parameter.value.size
        shape = parameter.value.shape
        parameter.value = values[start:stop].reshape(shape)
        parameter.grad = grads[start:stop].reshape(shape)
        start = stop


def pack(parameters):
    """Move parameters into two new flat arrays, values and gradients, bind them there, and return both arrays."""
    values = xp.concatenate([parameter.value.ravel() for parameter in parameters])
    grads = xp.zeros_like(values)
    bind(parameters, values, grads)
    return values, grads


def random_weight(rng, shape, fan_in, gain, dtype):
    """Weights drawn from N(0, gain^2 / fan_in), so that a layer keeps the scale of what passes through it.

    fan_in is the number of inputs that are summed into one output. gain makes up for what the activation takes away:
    1 for none, sqrt(2 / (1 + slope^2)) for LeakyReLU(slope) (He et al. 2015, "Delving deep into rectifiers").
    """
    weight = rng.standard_normal(shape, dtype=dtype)
    weight *= gain / math.sqrt(fan_in)
    return to_device(weight)


def sum_rows(dy):
    """Sum (..., F) over all axes but the last: the gradient of a bias that was added to every row."""
    return dy.reshape(-1, dy.shape[-1]).sum(axis=0)


class Layer(Replaceable):
    """A differentiable map. Subclasses define forward and backward, and list what they learn in `parameters`."""

    parameters = ()

    def forward(self, x):
        """Return y, and keep what backward needs."""
        raise NotImplementedError

    def backward(self, dy):
        """Given dL/dy for the y of the last forward, overwrite the parameters' gradients and return dL/dx."""
        raise NotImplementedError

    def backward_parameters(self, dy):
        """As backward, but without dL/dx, which nobody needs of a first layer; some layers save work by it."""
        if self.parameters:
            self.backward(dy)

    def __repr__(self):
        return f"{type(self).__name__}()"


class Dense(Layer):
    """Multiply by a matrix and add a bias: x (N, I) -> y (N, O).

        forward    y = rate x W + b
        backward   dW = rate x^T dy     db = sum of dy over N     dx = rate dy W^T

    W is drawn 1 / rate as large, so that a rate changes nothing but what is learned: Adam moves all weights by about
    the learning rate, and y, a sum of many inputs, by `rate` times as much as without (Karras et al. 2018).
    """

    def __init__(self, inputs, outputs, rng, gain=1.0, dtype="float32", rate=1.0):
        self.rate = rate
        self.weight = Parameter("weight", random_weight(rng, (inputs, outputs), inputs, gain / rate, dtype))
        self.bias = Parameter("bias", xp.zeros(outputs, dtype))
        self.parameters = (self.weight, self.bias)

    def forward(self, x):
        self.x = x = self.rate * x
        return x @ self.weight.value + self.bias.value

    def backward(self, dy):
        xp.matmul(self.x.T, dy, out=self.weight.grad)
        self.bias.grad[...] = sum_rows(dy)
        return self.rate * dy @ self.weight.value.T

    def __repr__(self):
        return "Dense({} -> {})".format(*self.weight.value.shape)


class LeakyReLU(Layer):
    """Let positive numbers pass and scale negative ones: y = x where x > 0, else slope * x (Maas et al. 2013).

        backward   dx = dy where x > 0, else slope * dy

    Raises InputError unless slope is between 0 and 1, where y = max(x, slope * x).
    """

    def __init__(self, slope=0.2):
        if not 0 <= slope <= 1:
            raise InputError(f"the slope of LeakyReLU must be between 0 and 1, not {slope}")
        self.slope = slope

    @property
    def gain(self):
        """What the weights before this activation are multiplied by to keep the scale; see random_weight."""
        return math.sqrt(2 / (1 + self.slope**2))

    def forward(self, x):
        self.y = y = xp.maximum(x, self.slope * x)
        return y

    def backward(self, dy):
        return xp.where(self.y > 0, dy, self.slope * dy)  # y > 0 just where x > 0

    def __repr__(self):
        return f"LeakyReLU({self.slope})"


class Reshape(Layer):
    """Give every item of a batch another shape: x (N, ...) -> y (N, *shape). The numbers stay as they are."""

    def __init__(self, *shape):
        self.shape = shape

    def forward(self, x):
        self.input_shape = x.shape
        return x.reshape(len(x), *self.shape)

    def backward(self, dy):
        return dy.reshape(self.input_shape)

    def __repr__(self):
        return f"Reshape{self.shape}"


class Sum(Layer):
    """Paths side by side: each is given x, and y is the sum of what they return.

        backward   dx = sum of the paths' dx
    """

    def __init__(self, *paths):
        self.paths = paths
        self.parameters = tuple(parameter for path in paths for parameter in path.parameters)

    def forward(self, x):
        return sum(path.forward(x) for path in self.paths)

    def backward(self, dy):
        return sum(path.backward(dy) for path in self.paths)

    def backward_parameters(self, dy):
        for path in self.paths:
            path.backward_parameters(dy)

    def __repr__(self):
        return listed("Sum", self.paths)


class Sequential(Layer):
    """Layers one after the other: forward from first to last, backward from last to first (the chain rule)."""

    def __init__(self, *layers):
        self.layers = layers
        self.parameters = tuple(parameter for layer in layers for parameter in layer.parameters)

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def backward_parameters(self, dy):
        first, *others = self.layers
        for layer in reversed(others):
            dy = layer.backward(dy)
        first.backward_parameters(dy)

    def __repr__(self):
        return listed("Sequential", self.layers)


def listed(name, layers):
    """The repr of a layer that is made of others, a line for each."""
    return f"{name}(\n" + textwrap.indent("\n".join(map(repr, layers)), "  ") + "\n)"
