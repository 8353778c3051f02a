"""Finite differences: is a handwritten gradient the derivative of what forward computes?

    python -m vae_np.gradcheck                  a table of every gradient in the package (run/gradient_table.py)
    python -m vae_np.gradcheck --only Conv2d    only this part of it

Use float64, and inputs away from kinks such as LeakyReLU's at 0. The upstream gradient is random: of all ones, mixed-up
elements would pass. A right gradient then agrees to 1e-8 or better, a wrong one hardly ever to 1e-2.

A check of this kind cannot see an error that forward and backward share, such as a wrong formula with the right
derivative. That takes a second opinion; lesson 02 plants such errors with --break, and the tests are full of them.
"""

import numpy as np

from vae_np.backend import to_cpu, to_device, xp


def relative_error(a, b):
    """|a - b| / (|a| + |b|), with Euclidean norms: 0 for equal arrays, 1 for opposite ones, inf for other shapes."""
    a, b = np.asarray(to_cpu(a), np.float64), np.asarray(to_cpu(b), np.float64)
    if a.shape != b.shape:
        return np.inf
    scale = np.linalg.norm(a) + np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / scale) if scale else 0.0


def numerical_gradient(f, x, h=1e-5):
    """The gradient of the number f() with respect to the array x, which f reads, one element at a time.

    Each element is moved by +h and -h: (f(x + h) - f(x - h)) / (2 h). Its error is of order h^2, rounding adds one of
    order 1e-16 / h, and h = 1e-5 keeps both small. x is put back.
    """
    gradient = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        value = float(x[index])
        x[index] = value + h
        above = float(f())
        x[index] = value - h
        below = float(f())
        x[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


def check_layer(layer, x, rng):
    """Compare a layer's gradients with finite differences: {"input": error, "weight": error, ...}, relative errors.

    The loss is <dy, layer.forward(x)> for a random dy, whose gradient with respect to the output is dy. A second
    parameter of the same name is called weight', and so on.
    """
    y = layer.forward(x)
    dy = to_device(rng.standard_normal(y.shape))
    pairs = {"input": (x, layer.backward(dy).copy())}
    for parameter in layer.parameters:
        name = parameter.name
        while name in pairs:
            name += "'"
        pairs[name] = (parameter.value, parameter.grad.copy())

    def loss():
        return (layer.forward(x) * dy).sum()

    return {name: relative_error(grad, numerical_gradient(loss, array)) for name, (array, grad) in pairs.items()}


def check_direction(f, values, gradient, rng, h=1e-5):
    """Check a large gradient with two evaluations of f: its product with a random direction u, |u| = 1.

    <gradient, u> must equal the derivative of f along u, (f(values + h u) - f(values - h u)) / (2 h). Returns the
    relative error; values is put back.
    """
    u = rng.standard_normal(values.shape)
    u = to_device(u / np.linalg.norm(u))
    product = float(xp.vdot(gradient, u))  # before f is called, which may overwrite the gradient
    start = values.copy()
    values[...] = start + h * u
    above = float(f())
    values[...] = start - h * u
    below = float(f())
    values[...] = start
    return relative_error((above - below) / (2 * h), product)


if __name__ == "__main__":
    from vae_np.run.gradient_table import main

    raise SystemExit(main())
