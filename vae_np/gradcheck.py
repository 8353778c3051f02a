"""Finite differences: is a handwritten gradient the derivative of what forward computes?

    python -m vae_np.gradcheck                  a table of every gradient in the package
    python -m vae_np.gradcheck --only Conv2d    only this part of it

Everything is float64, with a random upstream gradient (one of ones lets a transposed gradient pass) and inputs away
from kinks such as LeakyReLU's at 0. A right gradient then agrees to 1e-8 or better, a wrong one hardly ever to 1e-2.

A check of this kind cannot see an error that forward and backward share, such as a wrong formula with the right
derivative. That takes a second opinion; lesson 02 plants such errors with --break, and the tests are full of them.
"""

import functools
import itertools
import sys
import time
from dataclasses import dataclass

import numpy as np

from vae_np import backend
from vae_np.backend import to_cpu, to_device, xp
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import VAEError
from vae_np.fast.winograd import WinogradConv2d, WinogradConvTranspose2d
from vae_np.layers import Dense, Layer, LeakyReLU, Parameter, Reshape, Sequential
from vae_np.losses import (
    LIKELIHOODS,
    CalibratedGaussian,
    free_bits,
    kl_divergence,
    kl_per_dimension,
    squared_error,
)
from vae_np.run.command import OneLineParser, run
from vae_np.study.logistic import hessian, loss_and_gradient
from vae_np.study.two_stage import CodeVAE
from vae_np.vae import VAE, Reparameterization

TOLERANCE = 1e-6
ELEMENTS, DIRECTION = "element by element", "one random direction"


# The method.


def relative_error(a, b):
    """|a - b| / (|a| + |b|), with Euclidean norms: 0 for equal arrays, 1 for opposite ones, inf for other shapes."""
    a, b = np.asarray(to_cpu(a), np.float64), np.asarray(to_cpu(b), np.float64)
    if a.shape != b.shape:
        return np.inf
    scale = np.linalg.norm(a) + np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / scale) if scale else 0.0


def numerical_gradient(f, x, h=1e-5):
    """The gradient of the number f() with respect to the array x, which f reads, one element at a time.

    Each element is moved by +h and -h: (f(x + h) - f(x - h)) / (2 h), whose error is of order h^2. x is put back.
    """
    gradient = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        value = float(x[index])
        x[index] = value + h
        above = float(f())
        x[index] = value - h
        gradient[index] = (above - float(f())) / (2 * h)
        x[index] = value
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
    start = values.copy()
    values[...] = start + h * u
    above = float(f())
    values[...] = start - h * u
    below = float(f())
    values[...] = start
    return relative_error((above - below) / (2 * h), float(xp.vdot(gradient, u)))


# What is checked. Layers and likelihoods are listed from the code, so that none can be forgotten.


@dataclass(frozen=True)
class Result:
    """A line of the table: the relative error of one gradient. It passes below TOLERANCE; a NaN does not."""

    what: str
    part: str
    method: str
    error: float

    @property
    def passed(self):
        return self.error < TOLERANCE


def layer_examples(rng):
    """One layer or more of every kind, in float64, each with the shape of an input.

    Images are not square, so that height taken for width shows.
    """
    return [
        (Dense(6, 4, rng, dtype="float64"), (3, 6)),
        (LeakyReLU(0.2), (3, 8)),
        (Reshape(2, 2, 3), (2, 12)),
        (Sequential(Dense(5, 4, rng, dtype="float64"), LeakyReLU(0.3), Dense(4, 2, rng, dtype="float64")), (3, 5)),
        (Conv2d(3, 5, 4, rng, stride=2, padding=1, dtype="float64"), (2, 6, 4, 3)),
        (Conv2d(2, 3, 3, rng, stride=1, padding=1, dtype="float64"), (2, 5, 4, 2)),
        (ConvTranspose2d(5, 3, 4, rng, stride=2, padding=1, dtype="float64"), (2, 3, 2, 5)),
        (ConvTranspose2d(2, 3, 3, rng, stride=2, padding=0, dtype="float64"), (2, 3, 4, 2)),
        (WinogradConv2d(2, 3, 4, rng, stride=2, padding=1, dtype="float64"), (3, 8, 4, 2)),
        (WinogradConv2d(2, 3, 4, rng, stride=2, padding=1, dtype="float64"), (2, 4, 6, 2)),
        (WinogradConvTranspose2d(3, 2, 4, rng, stride=2, padding=1, dtype="float64"), (3, 4, 2, 3)),
        (WinogradConvTranspose2d(3, 2, 4, rng, stride=2, padding=1, dtype="float64"), (2, 3, 2, 3)),
    ]


def layer_kinds(base=Layer):
    """Every subclass of Layer in the package that has a forward of its own, each before its own subclasses."""
    below = [kind for child in base.__subclasses__() for kind in (child, *layer_kinds(child))]
    return [kind for kind in below if kind.forward is not Layer.forward and kind.__module__.startswith("vae_np.")]


def name_of(layer, shape):
    """A layer in one line, with the size of its images where it takes images."""
    return " ".join(repr(layer).split()) + (f" on {shape[1]}x{shape[2]}" if len(shape) == 4 else "")


def check_layer_kind(kind, rng):
    """Results for the examples of one kind of layer.

    A kind without an example fails, and so does an example in float32, or one that keeps a Parameter to itself, which
    would never learn.
    """
    examples = [(layer, shape) for layer, shape in layer_examples(rng) if type(layer) is kind]
    if not examples:
        yield Result(kind.__name__, "all of it", "has no example in layer_examples", np.nan)
    for layer, shape in examples:
        if any(parameter.value.dtype != np.float64 for parameter in layer.parameters):
            yield Result(name_of(layer, shape), "all of it", 'needs dtype="float64" in layer_examples', np.nan)
            continue
        for name, value in vars(layer).items():
            if isinstance(value, Parameter) and value not in layer.parameters:
                yield Result(name_of(layer, shape), name, "is not in the layer's parameters", np.nan)
        x = rng.standard_normal(shape)
        x += 0.1 * np.sign(x)  # off LeakyReLU's kink at 0
        for name, error in check_layer(layer, to_device(x), rng).items():
            yield Result(name_of(layer, shape), name, ELEMENTS, error)


def recon_of(likelihood, logits, x):
    """The reconstruction term as a function of the logits alone: a calibrated sigma moves with them."""
    if isinstance(likelihood, CalibratedGaussian):
        likelihood.calibrate(squared_error(logits, x), x.size)
    return likelihood(logits, x)[0]


def check_likelihood(likelihood, rng):
    """The gradient of a likelihood with respect to the logits."""
    logits, x = to_device(2 * rng.standard_normal((2, 3, 4, 3))), to_device(rng.random((2, 3, 4, 3)))
    recon_of(likelihood, logits, x)  # calibrates
    _, dlogits = likelihood(logits, x)
    numerical = numerical_gradient(lambda: recon_of(likelihood, logits, x), logits)
    yield Result(repr(likelihood), "logits", ELEMENTS, relative_error(dlogits, numerical))


def check_kl(rng):
    """The gradients of the KL divergence."""
    mu, log_var = to_device(rng.standard_normal((4, 3))), to_device(rng.standard_normal((4, 3)))
    _, dmu, dlog_var = kl_divergence(mu, log_var)
    for name, array, gradient in (("mu", mu, dmu), ("log_var", log_var, dlog_var)):
        numerical = numerical_gradient(lambda: kl_divergence(mu, log_var)[0], array)
        yield Result("KL divergence", name, ELEMENTS, relative_error(gradient, numerical))


def check_reparameterization(rng):
    """The gradients of z with respect to mu and log_var, for fixed noise."""
    mu, log_var, eps, dz = (to_device(rng.standard_normal((4, 3))) for _ in range(4))
    layer = Reparameterization()
    layer.forward(mu, log_var, eps)
    gradients = layer.backward(dz)
    for name, array, gradient in zip(("mu", "log_var"), (mu, log_var), gradients, strict=True):
        numerical = numerical_gradient(lambda: (layer.forward(mu, log_var, eps) * dz).sum(), array)
        yield Result("Reparameterization", name, ELEMENTS, relative_error(gradient, numerical))


def check_elbo(rng, beta=0.5):
    """The gradient of recon + beta * kl of a small VAE with respect to all its parameters, for every likelihood."""
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5, dtype="float64")
    x, eps = to_device(rng.random((3, 16, 16, 3))), to_device(rng.standard_normal((3, 5)))
    split = sum(parameter.value.size for parameter in model.encoder.parameters)
    for kind in LIKELIHOODS.values():
        likelihood = kind()

        def loss(likelihood=likelihood):  # as an argument, since the loop goes on
            logits, mu, log_var = model.forward(x, eps)
            return recon_of(likelihood, logits, x) + beta * kl_divergence(mu, log_var)[0]

        loss()  # calibrates
        model.loss_and_gradient(x, eps, likelihood, beta)
        gradient = model.grads.copy()
        for name, part in (("encoder", slice(None, split)), ("decoder", slice(split, None))):
            error = check_direction(loss, model.values[part], gradient[part], rng)
            yield Result(f"ELBO of a small VAE, {likelihood!r}", name, DIRECTION, error)


def check_free_bits(rng, beta=0.5):
    """The gradient of recon + beta * sum of max(nats, kl_j), with some latents above their free bits and some below.

    The others' share of the term is a constant: it is the KL divergence of those above.
    """
    model, likelihood = VAE(image_size=16, channels=(4, 6), latent_dim=5, dtype="float64"), LIKELIHOODS["bernoulli"]()
    x, eps = to_device(rng.random((3, 16, 16, 3))), to_device(rng.standard_normal((3, 5)))
    _, mu, log_var = model.forward(x, eps)
    two, three = np.sort(to_cpu(kl_per_dimension(mu, log_var)))[1:3]
    nats = float((two + three) / 2)  # off the kink, where the KL of a latent is its free bits

    _, weights = free_bits(kl_per_dimension(mu, log_var), nats)

    def loss():
        logits, mu, log_var = model.forward(x, eps)
        return likelihood(logits, x)[0] + beta * kl_divergence(weights * mu, weights * log_var)[0]

    model.loss_and_gradient(x, eps, likelihood, beta * weights)
    encoder = slice(sum(parameter.value.size for parameter in model.encoder.parameters))
    error = check_direction(loss, model.values[encoder], model.grads[encoder].copy(), rng)
    what = f"ELBO of a small VAE, {int(weights.sum())} of 5 latents above their free bits"
    yield Result(what, "encoder", DIRECTION, error)


def check_code_vae(rng):
    """The gradient of recon + kl of the second stage with respect to all its parameters; sigma moves with them."""
    model = CodeVAE(3, rng, width=4, dtype="float64")
    w, eps = to_device(rng.standard_normal((5, 3))), to_device(rng.standard_normal((5, 3)))
    split = sum(parameter.value.size for parameter in model.encoder.parameters)
    model.loss_and_gradient(w, eps)
    gradient = model.grads.copy()
    for name, part in (("encoder", slice(None, split)), ("decoder", slice(split, None))):
        numerical = numerical_gradient(lambda: sum(model.loss_and_gradient(w, eps)), model.values[part])
        error = relative_error(gradient[part], numerical)
        yield Result("ELBO of a VAE on codes, calibrated sigma", name, ELEMENTS, error)


def check_logistic(rng, l2=0.3):
    """The gradient of logistic regression's loss, and its second derivatives: of <u, gradient>, which are H u."""
    x, y, (parameters, u) = rng.standard_normal((6, 3)), rng.random(6) < 0.5, rng.standard_normal((2, 4))
    _, gradient = loss_and_gradient(parameters, x, y, l2)
    numerical = numerical_gradient(lambda: loss_and_gradient(parameters, x, y, l2)[0], parameters)
    yield Result("Logistic regression", "parameters", ELEMENTS, relative_error(gradient, numerical))
    numerical = numerical_gradient(lambda: u @ loss_and_gradient(parameters, x, y, l2)[1], parameters)
    error = relative_error(hessian(parameters, x, l2) @ u, numerical)
    yield Result("Logistic regression, second derivatives", "parameters", ELEMENTS, error)


def all_checks():
    """Every check by its name: {name: function(rng) -> results}."""
    layers = {kind.__name__: functools.partial(check_layer_kind, kind) for kind in layer_kinds()}
    likelihoods = {kind.__name__: functools.partial(check_likelihood, kind()) for kind in LIKELIHOODS.values()}
    return layers | likelihoods | {"KL": check_kl, "Reparameterization": check_reparameterization, "ELBO": check_elbo,
                                  "FreeBits": check_free_bits, "CodeVAE": check_code_vae, "Logistic": check_logistic}


def results_of(checks):
    """Run checks and yield their results. Each gets random numbers of its own, so that it gives the same alone."""
    return itertools.chain.from_iterable(check(np.random.default_rng(0)) for check in checks.values())


# The table.


def print_table(checks):
    """Print a line for every result. Raises VAEError, naming what failed, unless all pass."""
    start, results = time.perf_counter(), []
    print(f"{'what':64s} {'part':10s} {'method':21s} {'relative error':>14s}")
    for result in results_of(checks):
        results.append(result)
        print(f"{result.what:64s} {result.part:10s} {result.method:21s} {result.error:14.0e}  "
              f"{'pass' if result.passed else 'FAIL'}", flush=True)
    failed = [f"{result.what} ({result.part}{' ' + result.method if np.isnan(result.error) else ''})"
              for result in results if not result.passed]
    if failed:
        raise VAEError(f"{len(failed)} of {len(results)} gradients did not pass: {', '.join(failed)}")
    largest, seconds = max(result.error for result in results), time.perf_counter() - start
    print(f"{len(results)} gradients on {backend.NAME} in {seconds:.1f} s: all below {TOLERANCE:.0e}, "
          f"the largest relative error is {largest:.0e}")


def main(arguments=None):
    """The command line; returns its exit status."""
    parser = OneLineParser(prog="python -m vae_np.gradcheck", description=__doc__.split("\n\n")[0])
    checks = all_checks()
    by_lower_case = {name.lower(): name for name in checks}
    parser.add_argument("--only", metavar="NAME", type=lambda name: by_lower_case.get(name.lower(), name),
                        choices=checks, help="check one of: " + ", ".join(checks))
    only = parser.parse_args(arguments).only
    return run(print_table, checks={only: checks[only]} if only else checks)


if __name__ == "__main__":
    sys.exit(main())
