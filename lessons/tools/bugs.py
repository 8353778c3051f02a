"""Bugs of the kind that real projects ship, planted at run time, and the checks that catch them: lesson 2, --break.

A bug is a class whose functions take the place of functions of the package, of the same names, inside a `with planted`
block. Its docstring explains it. The package itself knows nothing of this.
"""

import contextlib
import inspect
import math
import sys
import textwrap
from unittest import mock

import numpy as np

from vae_np import VAE, conv, layers, losses
from vae_np.backend import to_device, xp
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.gradcheck import relative_error
from vae_np.layers import LeakyReLU
from vae_np.losses import Bernoulli
from vae_np.optim import Adam
from vae_np.run.gradient_table import TOLERANCE, Result, all_checks, layer_examples, name_of, results_of
from vae_np.vae import Reparameterization

# What finite differences cannot see: they compare backward with forward, so an error that both share passes, and one
# that is in neither. Each of these checks has a second opinion instead: another formula, a value worked out by hand, or
# a promise of the package.


def check_adjoint(rng):
    """ConvTranspose2d is the adjoint of Conv2d with the same weight: <conv(x), y> = <x, conv_transpose(y)>."""
    down = Conv2d(3, 5, 4, rng, stride=2, padding=1, dtype="float64")
    up = ConvTranspose2d(5, 3, 4, rng, stride=2, padding=1, dtype="float64")
    up.weight.value[...] = down.weight.value
    x, y = to_device(rng.standard_normal((2, 8, 6, 3))), to_device(rng.standard_normal((2, 4, 3, 5)))
    left, right = float(xp.vdot(down.forward(x), y)), float(xp.vdot(x, up.forward(y)))
    yield Result("ConvTranspose2d", "forward", "adjoint of Conv2d", relative_error(left, right))


def check_deviation(rng):
    """A log variance of ln 4 is a standard deviation of 2: with noise of 1, z lies 2 above mu."""
    mu = to_device(rng.standard_normal((4, 3)))
    one = xp.ones_like(mu)
    z = Reparameterization().forward(mu, math.log(4) * one, one)
    yield Result("Reparameterization", "forward", "log_var ln 4 by hand", relative_error(z - mu, 2 * one))


def check_kl_value(rng):
    """The KL divergence from N(0, 4) to N(0, 1) is (4 - 1 - ln 4) / 2 nats, and latents add up."""
    zero = to_device(np.zeros((2, 3)))
    kl, _, _ = losses.kl_divergence(zero, zero + math.log(4))
    yield Result("KL divergence", "value", "N(0, 4) by hand", relative_error(kl, 3 * (3 - math.log(4)) / 2))


def check_inputs_unchanged(rng):
    """No layer writes to its input."""
    for layer, shape in layer_examples(rng):
        x = to_device(rng.standard_normal(shape))
        before = x.copy()
        layer.backward(layer.forward(x).copy())
        yield Result(name_of(layer, shape), "input", "the same afterwards", relative_error(x, before))


def check_float32(rng):
    """float32 images and noise give float32 everywhere. The error is the share of arrays that are something else."""
    model = VAE(image_size=16, channels=(4, 6), latent_dim=5)
    x, eps = (to_device(rng.random(shape, dtype=np.float32)) for shape in ((2, 16, 16, 3), (2, 5)))
    try:
        logits, mu, log_var = model.forward(x, eps)
        recon, dlogits = Bernoulli()(logits, x)
        model.backward(dlogits, mu, log_var)  # any gradients will do for dmu and dlog_var
        arrays = (logits, mu, log_var, recon, dlogits, model.reparameterization.std, model.encoder.paths[0].layers[1].y,
                  model.grads)
        error = float(np.mean([array.dtype != np.float32 for array in arrays]))
    except TypeError:  # the kernels of a GPU refuse to mix types
        error = 1.0
    yield Result("VAE", "dtype", "float32 throughout", error)


def check_adam_steps(rng):
    """While the gradient stays the same, every step of Adam is as long as the learning rate, from the first one on."""
    values, grads = to_device(np.zeros(3)), to_device(np.array([3.0, -1.0, 0.5]))
    adam = Adam(values, grads)
    for _ in range(3):
        adam.update(0.1)
    yield Result("Adam", "steps", "three steps by hand", relative_error(values, [-0.3, 0.3, -0.3]))


SECOND_OPINIONS = {"adjoint": check_adjoint, "deviation": check_deviation, "KL value": check_kl_value,
                   "inputs": check_inputs_unchanged, "float32": check_float32, "Adam": check_adam_steps}  # fmt: skip

BUGS = {}


def replaces(name, on, caught_by):
    """Register the class below as a bug: its functions replace those of the same names of a class or module, `on`.

    caught_by names the check that is meant to catch it, one of gradcheck.all_checks() or of SECOND_OPINIONS. A function
    that needs the right one keeps it as the default of an argument: right=VAE.backward is looked up when the class is
    defined, before the name is given to the broken one.
    """

    def register(cls):
        cls.name, cls.on, cls.caught_by = name, on, caught_by
        cls.functions = {key: value for key, value in vars(cls).items() if inspect.isfunction(value)}
        BUGS[name] = cls
        return cls

    return register


@contextlib.contextmanager
def planted(bug):
    """Inside this block the bug's functions stand in for the right ones."""
    with contextlib.ExitStack() as stack:
        for name, broken in bug.functions.items():
            right = getattr(bug.on, name)
            # `from vae_np.conv import fold` gives a module a name of its own for fold: replace every such name.
            modules = [module for key, module in sys.modules.items() if key.startswith("vae_np.")]
            for owner in {bug.on, *(module for module in modules if getattr(module, name, None) is right)}:
                stack.enter_context(mock.patch.object(owner, name, broken))
        yield


@replaces("log-var-as-log-std", on=Reparameterization, caught_by="deviation")
class LogVarianceAsLogDeviation:
    """exp(log_var) is the variance; the deviation is its root, exp(log_var / 2). Here backward fits the wrong forward,
    so finite differences find nothing: it is the right gradient of another model, whose z spreads too far and whose KL
    divergence is that of another distribution. One value worked out by hand tells: ln 4 must give 2, and gives 4.
    The VAE examples of DeZero (examples/vae.py) and numpy-ml (numpy_ml/neural_nets/models/vae.py) ship with it."""

    def forward(self, mu, log_var, eps):
        self.eps, self.std = eps, xp.exp(log_var)
        return mu + self.std * eps

    def backward(self, dz):
        return dz, dz * self.std * self.eps


@replaces("noise-drawn-again", on=Reparameterization, caught_by="Reparameterization")
class NoiseDrawnAgain:
    """backward needs the noise that forward used. Fresh noise has mean 0, so the gradient of log_var averages to
    nothing and the encoder never learns how sure it may be; the loss still falls, since mu gets its gradient.
    Noise is an argument in this package, so that such a slip takes an effort, and a check can hold it fixed."""

    def backward(self, dz):  # from a fixed seed here, so that the table is the same every time
        eps = to_device(np.random.default_rng(1).standard_normal(dz.shape, dtype=dz.dtype))
        return dz, dz * self.std * eps * 0.5


@replaces("kl-averaged", on=losses, caught_by="KL value")
class KLAveraged:
    """The reconstruction is summed over pixels; a KL averaged over Z latents then weighs 1/Z of what it should. With
    160 of them that is a beta of 1/160 without saying so: good reconstructions, hopeless samples. Value and gradient
    are wrong by the same factor, so they fit each other. Only a case whose value is known by hand shows it."""

    def kl_divergence(mu, log_var, right=losses.kl_divergence):
        return tuple(term / mu.shape[1] for term in right(mu, log_var))


@replaces("kernel-flipped", on=ConvTranspose2d, caught_by="adjoint")
class KernelFlipped:
    """A true convolution flips its kernel, a layer's cross-correlation does not, and whoever ports one as the other
    flips too often. Forward and backward agree, and a freshly trained model hides it: it learns flipped kernels.
    It shows beside another definition: <conv(x), y> = <x, conv_transpose(y)>, or weights from somewhere else."""

    def forward(self, x, right=ConvTranspose2d.forward):
        with KernelFlipped.upside_down(self.weight.value):
            return right(self, x)

    def backward(self, dy, right=ConvTranspose2d.backward):
        with KernelFlipped.upside_down(self.weight.value):
            dx = right(self, dy)
        self.weight.grad[...] = self.weight.grad[::-1, ::-1].copy()
        return dx

    @staticmethod
    @contextlib.contextmanager
    def upside_down(weight):
        weight[...] = weight[::-1, ::-1].copy()
        yield
        weight[...] = weight[::-1, ::-1].copy()


@replaces("height-width-swapped", on=Conv2d, caught_by="Conv2d")
class HeightWidthSwapped:
    """Kernels are square, so a gradient with its two spatial axes swapped has the right shape and the right norm.
    Training goes on, only worse. An upstream gradient of ones could not tell the axes apart on a symmetric input,
    which is why the check draws a random one. Of a layer's lines only the weight's fails; input and bias are right."""

    def backward_parameters(self, dy, right=Conv2d.backward_parameters):
        right(self, dy)
        self.weight.grad[...] = self.weight.grad.transpose(1, 0, 2, 3).copy()


@replaces("bias-averaged", on=layers, caught_by="Conv2d")
class BiasAveraged:
    """A bias is added to every pixel of every image, so its gradient is a sum over all of them. A mean points the same
    way and is thousands of times too small; Adam, which does not mind the scale of a gradient, hides it completely.
    Finite differences compare numbers, not directions: the lines of the biases fail, and those that contain them."""

    def sum_rows(dy):
        return dy.reshape(-1, dy.shape[-1]).mean(axis=0)


@replaces("fold-overwrites", on=conv, caught_by="ConvTranspose2d")
class FoldOverwrites:
    """With `=` for `+=` in fold, the last patch wins wherever patches overlap, and the others are lost.
    4x4 kernels at stride 2 cover every pixel four times, so that three quarters of all terms are missing.
    It shows wherever fold is used: forward in ConvTranspose2d, backward in Conv2d, and in the adjoint test."""

    def fold(patches, shape, kernel_size, stride, padding):
        n, h, w, c = shape
        oh, ow = (conv.conv_size(size, kernel_size, stride, padding) for size in (h, w))
        patches = patches.reshape(n, oh, ow, kernel_size, kernel_size, c)
        padded = xp.zeros((n, h + 2 * padding, w + 2 * padding, c), patches.dtype)
        for i in range(kernel_size):
            for j in range(kernel_size):
                padded[:, i : i + stride * oh : stride, j : j + stride * ow : stride] = patches[:, :, :, i, j]
        return padded[:, padding : padding + h, padding : padding + w]


@replaces("slope-forgotten", on=LeakyReLU, caught_by="LeakyReLU")
class SlopeForgotten:
    """Forward lets a fifth of every negative number pass; this backward is the one of a plain ReLU and passes nothing.
    Units that are negative get no gradient, die as those of a ReLU do, and training is a little worse than it need
    be. Nothing crashes and the loss falls: without a check, nobody would look here."""

    def backward(self, dy):
        return dy * (self.y > 0)


@replaces("input-modified", on=LeakyReLU, caught_by="inputs")
class InputModified:
    """To save memory, the activation is computed in the array that it was given. But that array belongs to the
    caller: the layer before may need it for its backward pass, and a batch that is used twice is no longer the
    same. What is wrong then depends on who keeps what. The package promises to leave its inputs alone."""

    def forward(self, x):
        x *= xp.where(x > 0, 1.0, self.slope)
        self.y = x
        return x


@replaces("gradient-twice", on=VAE, caught_by="ELBO")
class GradientTwice:
    """The decoder's gradient must reach the encoder once. Where gradients are accumulated and a part of the backward
    pass runs twice, it counts double, as if the reconstruction weighed 2 and the KL 1 for the encoder alone.
    Every layer is right; only the check of the whole finds it, and that the decoder's line passes says where."""

    def backward(self, dlogits, dmu, dlog_var, right=VAE.backward):
        more_dmu, more_dlog_var = self.reparameterization.backward(self.decoder.backward(dlogits))
        return right(self, dlogits, dmu + more_dmu, dlog_var + more_dlog_var)


@replaces("adam-uncorrected", on=Adam, caught_by="Adam")
class AdamUncorrected:
    """Adam's averages start at 0: after one step m is a tenth of the gradient, v a thousandth of its square. The first
    step is then 0.1 / sqrt(0.001) = 3.2 times too long, and steps stay wrong for about a thousand more.
    No gradient is wrong, so no gradient check can see it: the update needs a test of its own, by hand."""

    def update(self, learning_rate, right=Adam.update):
        step, self.step = self.step, 10**9  # the corrections 1 - beta^t are then 1
        right(self, learning_rate)
        self.step = step + 1


@replaces("float64-noise", on=Reparameterization, caught_by="float32")
class Float64Noise:
    """NumPy draws float64 unless told otherwise, and float32 times float64 is float64: from z on, the whole decoder
    computes in double precision, at half the speed and with twice the memory. Every number is right, if
    anything too precise. VAE.forward refuses float64 noise for this reason; here it slips in behind that."""

    def forward(self, mu, log_var, eps, right=Reparameterization.forward):
        return right(self, mu, log_var, eps.astype(np.float64))


def place_of(bug):
    """Where a bug is planted, such as "LeakyReLU.backward"."""
    return f"{bug.on.__name__.removeprefix('vae_np.')}.{', '.join(bug.functions)}"


def demonstrate(bug):
    """Print what the bug is, its code, and the checks that fail because of it, with their errors before and after."""
    text = inspect.cleandoc(bug.__doc__ or "")  # there is none under python -OO
    print(f"{bug.name}, planted in {place_of(bug)}\n\n{textwrap.indent(text, '  ')}\n")
    source = "\n".join(inspect.getsource(function) for function in bug.functions.values())
    print(source + ("\n    (right is the function as it is in the package)\n" if "right(" in source else ""))
    checks = all_checks() | SECOND_OPINIONS
    before = list(results_of(checks))
    with planted(bug):
        after = list(results_of(checks))
    print(f"{'check':64s} {'part':8s} {'method':21s} {'before':>6s} {'after':>6s}")
    caught = [(right, wrong) for right, wrong in zip(before, after, strict=True) if right.passed and not wrong.passed]
    for right, wrong in caught:
        print(f"{right.what:64s} {right.part:8s} {right.method:21s} {right.error:6.0e} {wrong.error:6.0e}")
    print(f"{len(caught)} of {len(after)} checks catch it. Errors are |a - b| / (|a| + |b|), where a factor of 2 makes "
          f"{1 / 3:.0e};\nbelow {TOLERANCE:.0e} a check passes.")


def list_bugs():
    """Print the names of all bugs, where they are planted, and the check that is meant to catch each."""
    gradients = all_checks()
    print(f"{'name':22s} {'planted in':40s} the check that is meant to catch it")
    for name, bug in BUGS.items():
        seen_by = "finite differences: " if bug.caught_by in gradients else "a second opinion:   "
        print(f"{name:22s} {place_of(bug):40s} {seen_by}{bug.caught_by}")
