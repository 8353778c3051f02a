"""The table of every gradient in the package, compared with finite differences by gradcheck.py.

Layers and likelihoods are listed from the code: a new layer fails until layer_examples has an example of it. Checked is
what the backend makes: under VAE_BACKEND=plain the core's own layers, otherwise those of fast/ in their place.
"""

import functools
import itertools
import re
import time
from dataclasses import dataclass

import numpy as np

from vae_np import backend
from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d, ConvTranspose2d, Enlarge, Shrink
from vae_np.errors import VAEError
from vae_np.gradcheck import check_direction, check_layer, numerical_gradient, relative_error
from vae_np.layers import Dense, Layer, LeakyReLU, Parameter, Reshape, Sequential, Sum
from vae_np.losses import LIKELIHOODS, free_bits, kl_divergence
from vae_np.run.command import OneLineParser, run
from vae_np.study.flow import RIGHT_ANGLE, Velocity
from vae_np.study.logistic import hessian, loss_and_gradient
from vae_np.vae import VAE, Reparameterization

TOLERANCE = 1e-6
ELEMENTS, DIRECTION = "element by element", "one random direction"


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
        (Dense(5, 4, rng, dtype="float64", rate=0.1), (3, 5)),
        (LeakyReLU(0.2), (3, 8)),
        (Reshape(2, 2, 3), (2, 12)),
        (Sequential(Dense(5, 4, rng, dtype="float64"), LeakyReLU(0.3), Dense(4, 2, rng, dtype="float64")), (3, 5)),
        (Conv2d(3, 5, 4, rng, stride=2, padding=1, dtype="float64"), (2, 6, 4, 3)),
        (Conv2d(2, 3, 3, rng, stride=1, padding=1, dtype="float64"), (2, 5, 4, 2)),
        (ConvTranspose2d(5, 3, 4, rng, stride=2, padding=1, dtype="float64"), (2, 3, 2, 5)),
        (ConvTranspose2d(2, 3, 3, rng, stride=2, padding=0, dtype="float64"), (2, 3, 4, 2)),
        (Sum(Dense(5, 4, rng, dtype="float64"), Sequential(Dense(5, 2, rng, dtype="float64"),
                                                           Dense(2, 4, rng, dtype="float64"))), (3, 5)),
        (Shrink(2), (2, 6, 4, 3)),
        (Enlarge(3), (2, 3, 2, 3)),
        # What fast/winograd.py takes 9 products for 16 for, and what it does not.
        (Conv2d(4, 3, 4, rng, stride=2, padding=1, dtype="float64"), (2, 8, 4, 4)),
        (ConvTranspose2d(3, 4, 4, rng, stride=2, padding=1, dtype="float64"), (2, 4, 2, 3)),
    ]


def layer_kinds(base=Layer):
    """Every layer of the core that has a forward of its own: a subclass of Layer, each before its own subclasses."""
    below = [kind for child in base.__subclasses__() for kind in (child, *layer_kinds(child))]
    return [kind for kind in below
            if re.fullmatch(r"vae_np\.\w+", kind.__module__) and kind.forward is not Layer.forward]


def name_of(layer, shape):
    """A layer in one line, with the size of its images where it takes images."""
    return " ".join(repr(layer).split()) + (f" on {shape[1]}x{shape[2]}" if len(shape) == 4 else "")


def check_layer_kind(kind, rng):
    """Results for the examples of one kind of layer.

    It fails without one, and so does one in float32, or one that keeps a Parameter to itself, which would never learn.
    """
    made = backend.FASTER.get(kind, kind)
    examples = [(layer, shape) for layer, shape in layer_examples(rng) if type(layer) is made]
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


def elementwise(what, loss, *parts):
    """Results for parts (name, array, gradient): each gradient against that of the number loss() by the array."""
    for name, array, gradient in parts:
        yield Result(what, name, ELEMENTS, relative_error(gradient, numerical_gradient(loss, array)))


def normal(rng, *shape):
    """Random numbers on the device, in float64."""
    return to_device(rng.standard_normal(shape))


def check_likelihood(likelihood, rng):
    """The gradient of a likelihood with respect to the logits; a calibrated sigma moves with them."""
    logits, x = 2 * normal(rng, 2, 3, 4, 3), to_device(rng.random((2, 3, 4, 3)))
    _, dlogits = likelihood(logits, x)
    yield from elementwise(repr(likelihood), lambda: likelihood(logits, x)[0], ("logits", logits, dlogits))


def check_kl(rng):
    """The gradients of the KL divergence."""
    mu, log_var = normal(rng, 4, 3), normal(rng, 4, 3)
    _, dmu, dlog_var = kl_divergence(mu, log_var)
    yield from elementwise("KL divergence", lambda: kl_divergence(mu, log_var)[0],
                           ("mu", mu, dmu), ("log_var", log_var, dlog_var))


def check_reparameterization(rng):
    """The gradients of z with respect to mu and log_var, for fixed noise."""
    mu, log_var, eps, dz = (normal(rng, 4, 3) for _ in range(4))
    layer = Reparameterization()
    layer.forward(mu, log_var, eps)
    dmu, dlog_var = layer.backward(dz)
    yield from elementwise("Reparameterization", lambda: (layer.forward(mu, log_var, eps) * dz).sum(),
                           ("mu", mu, dmu), ("log_var", log_var, dlog_var))


def small_task(rng):
    """A small VAE, images, noise, and the slices of `values` that are the encoder's and the decoder's."""
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5, dtype="float64")
    split = sum(parameter.value.size for parameter in model.encoder.parameters)
    return model, to_device(rng.random((3, 16, 16, 3))), normal(rng, 3, 5), slice(None, split), slice(split, None)


def check_elbo(rng, beta=0.5):
    """The gradient of recon + beta * kl of a small VAE with respect to all its parameters, for every likelihood."""
    model, x, eps, *parts = small_task(rng)
    for likelihood in (kind() for kind in LIKELIHOODS.values()):
        def loss(likelihood=likelihood):  # as an argument, since the loop goes on
            logits, mu, log_var = model.forward(x, eps)
            return likelihood(logits, x)[0] + beta * kl_divergence(mu, log_var)[0]

        model.loss_and_gradient(x, eps, likelihood, beta)
        gradient = model.grads.copy()
        for name, part in zip(("encoder", "decoder"), parts, strict=True):
            error = check_direction(loss, model.values[part], gradient[part], rng)
            yield Result(f"ELBO of a small VAE, {likelihood!r}", name, DIRECTION, error)


def check_free_bits(rng, beta=0.5):
    """The gradient of recon + beta * sum of max(nats, kl_j), with some latents above their free bits and some below.

    The others' share of the term is a constant: it is the KL divergence of those above.
    """
    (model, x, eps, encoder, _), likelihood = small_task(rng), LIKELIHOODS["bernoulli"]()
    kl = model.latent_kl(x)
    nats = float(np.sort(to_cpu(kl))[1:3].mean())  # off the kink, where the KL of a latent is its free bits
    _, weights = free_bits(kl, nats)

    def loss():
        logits, mu, log_var = model.forward(x, eps)
        return likelihood(logits, x)[0] + beta * kl_divergence(weights * mu, weights * log_var)[0]

    model.loss_and_gradient(x, eps, likelihood, beta * weights)
    error = check_direction(loss, model.values[encoder], model.grads[encoder].copy(), rng)
    what = f"ELBO of a small VAE, {int(weights.sum())} of 5 latents above their free bits"
    yield Result(what, "encoder", DIRECTION, error)


def check_velocity(rng):
    """The gradient of a flow's loss with respect to all parameters, and of its velocity with respect to the codes."""
    model = Velocity(3, rng, width=4, dtype="float64")
    model.values += 0.3 * normal(rng, model.values.size)  # many are 0 at first, and would hide what is behind them
    z0, z1, dv = (normal(rng, 5, 3) for _ in range(3))
    angle = to_device(RIGHT_ANGLE * rng.random((5, 1)))
    model.loss_and_gradient(z0, z1, angle)
    yield from elementwise("Flow matching", lambda: model.loss_and_gradient(z0, z1, angle),
                           ("parameters", model.values, model.grads.copy()))
    model.forward(z1, angle)
    yield from elementwise("Velocity of a flow", lambda: (model.forward(z1, angle) * dv).sum(),
                           ("input", z1, model.backward(dv)))


def check_logistic(rng, l2=0.3):
    """The gradient of logistic regression's loss, and its second derivatives: of <u, gradient>, which are H u."""
    x, y, (parameters, u) = rng.standard_normal((6, 3)), rng.random(6) < 0.5, rng.standard_normal((2, 4))
    _, gradient = loss_and_gradient(parameters, x, y, l2)
    yield from elementwise("Logistic regression", lambda: loss_and_gradient(parameters, x, y, l2)[0],
                           ("parameters", parameters, gradient))
    yield from elementwise("Logistic regression, second derivatives",
                           lambda: u @ loss_and_gradient(parameters, x, y, l2)[1],
                           ("parameters", parameters, hessian(parameters, x, l2) @ u))


def all_checks():
    """Every check by its name: {name: function(rng) -> results}."""
    layers = {kind.__name__: functools.partial(check_layer_kind, kind) for kind in layer_kinds()}
    likelihoods = {kind.__name__: functools.partial(check_likelihood, kind()) for kind in LIKELIHOODS.values()}
    return layers | likelihoods | {"KL": check_kl, "Reparameterization": check_reparameterization, "ELBO": check_elbo,
                                  "FreeBits": check_free_bits, "Velocity": check_velocity, "Logistic": check_logistic}


def results_of(checks):
    """Run checks and yield their results. Each gets random numbers of its own, so that it gives the same alone."""
    return itertools.chain.from_iterable(check(np.random.default_rng(0)) for check in checks.values())


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
    """The command line of python -m vae_np.gradcheck; returns its exit status."""
    parser = OneLineParser(prog="python -m vae_np.gradcheck", description=(__doc__ or "").split("\n\n")[0])
    checks = all_checks()
    by_lower_case = {name.lower(): name for name in checks}
    parser.add_argument("--only", metavar="NAME", type=lambda name: by_lower_case.get(name.lower(), name),
                        choices=checks, help="check one of: " + ", ".join(checks))
    only = parser.parse_args(arguments).only
    return run(print_table, checks={only: checks[only]} if only else checks)
