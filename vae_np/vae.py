"""The variational autoencoder: encoder, reparameterization, decoder; forward and backward of the whole ELBO.

    x --encoder--> mu, log_var --reparameterization--> z = mu + exp(log_var / 2) * eps --decoder--> logits

Kingma and Welling 2014, "Auto-encoding variational Bayes".
"""

import copy

import numpy as np

from vae_np.backend import Replaceable, on_host, to_cpu, to_device, xp
from vae_np.errors import InputError, real_number, whole_number
from vae_np.layers import bind, pack
from vae_np.losses import Likelihood, kl_divergence, kl_per_dimension, sigmoid, softplus
from vae_np.network import build_decoder, build_encoder, check_settings

PART = 32  # images that are encoded or decoded at a time


class Reparameterization:
    """Turn noise eps from N(0, 1) into z from N(mu, exp(log_var)): mu, log_var, eps and z are all (N, Z).

        forward    z = mu + std * eps,     std = exp(log_var / 2)
        backward   dmu = dz                dlog_var = dz * std * eps / 2

    Written so, a random z has derivatives with respect to mu and log_var (Kingma and Welling 2014, section 2.4).
    backward uses the noise and the deviations that forward kept: other noise would give the gradient of another loss.
    """

    def forward(self, mu, log_var, eps):
        """Return z, and keep what backward needs."""
        self.eps, self.std = eps, xp.exp(0.5 * log_var)
        return mu + self.std * eps

    def backward(self, dz):
        """Given dL/dz, return dL/dmu and dL/dlog_var, as far as the loss depends on them through z."""
        return dz, dz * self.std * self.eps * 0.5


class VAE(Replaceable):
    """A convolutional VAE for square RGB images.

    network.py has the encoder, which makes 2 Z numbers of an image, and the decoder, which makes 3 logits a pixel of a
    code. What stands around them, and may be switched off to see what it is good for:

    centred   The encoder sees 4 (x - 1/2), numbers around 0 with a deviation of about 1. All that images have in common
              it would have to learn to take off first (LeCun et al. 1998, "Efficient BackProp").
    steady    The encoder's last layers sum up thousands of numbers: a step of Adam makes what they say jump. So their
              weights learn at a tenth of the rate; and of h, the second half of what they say, log_var = -log(1 +
              exp(h)). Precisions add up: the prior's is 1, what the image says adds exp(h), and the posterior's
              variance, 1 / (1 + exp(h)), is never above the prior's; with log_var = h it could overflow after one step.
    shortcut  One dense layer beside each of the two networks; see network.py.

    image_size must be divisible by 2^len(channels). seed fixes the initial weights. dtype is float32, or float64 for
    gradient checks. All parameters are views into the flat array `values`, their gradients into `grads`. `prior` is
    what `sample` draws codes from: None for N(0, I), unless another was fitted after training (study/priors.py).
    Raises InputError for settings that do not fit.
    """

    def __init__(self, image_size=64, channels=(24, 48, 96, 192), latent_dim=160, seed=0, dtype="float32",
                 centred=True, shortcut=True, steady=True):
        image_size, channels, latent_dim = check_settings(image_size, channels, latent_dim)
        self.settings = {"image_size": image_size, "channels": channels, "latent_dim": latent_dim,
                         "centred": bool(centred), "shortcut": bool(shortcut), "steady": bool(steady)}
        self.image_size, self.latent_dim, self.dtype = image_size, latent_dim, np.dtype(dtype)
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, not {self.dtype}")
        rng = np.random.default_rng(whole_number(seed, "seed", least=0))
        self.encoder = build_encoder(image_size, channels, latent_dim, shortcut, 0.1 if steady else 1.0, rng, dtype)
        self.reparameterization = Reparameterization()
        self.decoder = build_decoder(image_size, channels, latent_dim, shortcut, rng, dtype)
        self.parameters = self.encoder.parameters + self.decoder.parameters
        self.values, self.grads = pack(self.parameters)
        self.prior = None

    # The path that training takes, on arrays of the backend: what forward keeps, backward uses.

    def forward(self, x, eps):
        """Images x (N, H, W, 3) in [0, 1] and noise eps (N, Z) from N(0, 1) -> (logits, mu, log_var).

        Noise is an argument, never drawn here: backward must use the very noise that forward used.
        Both are the backend's arrays, which backend.to_device makes. Raises InputError for images of another shape,
        dtype or range, and for noise of another shape or dtype.
        """
        self._check_images(x)
        self._check_codes(eps, "noise", rows=len(x))
        if not (isinstance(x, xp.ndarray) and isinstance(eps, xp.ndarray)):
            raise InputError(f"expected images and noise as arrays of {xp.__name__}: use vae_np.backend.to_device")
        mu, self.log_var = self._posterior(x)
        z = self.reparameterization.forward(mu, self.log_var, eps)
        return self.decoder.forward(z), mu, self.log_var

    def backward(self, dlogits, dmu, dlog_var):
        """Overwrite `grads`, given the gradients of the loss with respect to the three results of forward.

        mu and log_var act on the loss in two ways: through z, and directly in the KL divergence, where dmu and dlog_var
        come from. The two gradients add up.
        """
        dmu_through_z, dlog_var_through_z = self.reparameterization.backward(self.decoder.backward(dlogits))
        dmu, dlog_var = dmu + dmu_through_z, dlog_var + dlog_var_through_z
        if self.settings["steady"]:
            dlog_var *= xp.exp(self.log_var) - 1  # d log_var / dh = -exp(h) / (1 + exp(h)), the variance minus 1
        self.encoder.backward_parameters(xp.concatenate([dmu, dlog_var], axis=1))

    def loss_and_gradient(self, x, eps, likelihood, beta=1.0):
        """The two terms of the loss, (recon, kl) in nats per image; the gradient of recon + beta * kl goes to `grads`.

        beta may also be an array (Z,), a weight for the KL divergence of each latent; the kl returned has no weights.
        """
        require_images(x)
        if not isinstance(likelihood, Likelihood):
            raise InputError(f"likelihood must be one of vae_np.losses, such as Bernoulli(), not {likelihood!r}")
        # A NumPy float64 would make every gradient float64.
        beta = beta.astype(self.dtype) if isinstance(beta, xp.ndarray) else real_number(beta, "beta")
        logits, mu, log_var = self.forward(x, eps)
        recon, dlogits = likelihood(logits, x)
        kl, dmu, dlog_var = kl_divergence(mu, log_var)
        self.backward(dlogits, beta * dmu, beta * dlog_var)
        return recon, kl

    def latent_kl(self, x):
        """KL divergence of each latent, averaged over images x, an array of the backend: (Z,)."""
        return kl_per_dimension(*self._posterior(x))

    # What a trained model is used for: NumPy arrays in, NumPy arrays out, a part at a time.

    def encode(self, x):
        """Images (N, H, W, 3) -> mu, log_var (N, Z): the approximate posterior q(z | x) of each."""
        self._check_images(x)
        return self.in_parts(lambda model, x: map(to_cpu, model._posterior(to_device(x))), x)

    def decode(self, z):
        """Codes (N, Z) -> images (N, H, W, 3) in [0, 1]."""
        self._check_codes(z, "codes")
        if not np.isfinite(z).all():
            raise InputError("expected codes of finite numbers")
        return self.in_parts(lambda model, z: [to_cpu(sigmoid(model.decoder.forward(to_device(z))))], z)[0]

    def reconstruct(self, x):
        """Images -> images, through the posterior mean mu: the reconstruction without noise."""
        return self.decode(self.encode(x)[0])

    def sample(self, count, rng, temperature=1.0):
        """Draw `count` new images: decode codes from `prior`, which a NumPy generator draws.

        For N(0, I) these are temperature * eps, eps from N(0, I).
        """
        count, temperature = whole_number(count, "count", least=0), real_number(temperature, "temperature")
        if not isinstance(rng, np.random.Generator):
            raise InputError(f"rng must be a NumPy generator, such as np.random.default_rng(0), not {rng!r}")
        if self.prior is not None:
            return self.decode(self.prior.sample(count, rng, temperature).astype(self.dtype))
        return self.decode(self.dtype.type(temperature) * rng.standard_normal((count, self.latent_dim), self.dtype))

    def in_parts(self, function, *arrays):
        """function(model, *parts) of some rows at a time, put together; the model may be a copy of this one."""
        starts = range(0, max(1, len(arrays[0])), PART)
        results = [function(self, *(array[start : start + PART] for array in arrays)) for start in starts]
        return [np.concatenate(column) for column in zip(*results, strict=True)]

    def _posterior(self, x):
        """mu and log_var of images, on the device."""
        h = self.encoder.forward(4 * (x - 0.5) if self.settings["centred"] else x)
        mu, h = h[:, : self.latent_dim], h[:, self.latent_dim :]
        return mu, -softplus(h) if self.settings["steady"] else h

    def _check_images(self, x, values=True):
        size = self.image_size
        expected = f"expected images as a {self.dtype} array (N, {size}, {size}, 3) with values in [0, 1]"
        if getattr(x, "ndim", None) != 4 or x.shape[1:] != (size, size, 3):
            raise InputError(f"{expected}, got {shape_or_type(x)}")
        if x.dtype != self.dtype:
            raise InputError(f"{expected}, got {x.dtype}")
        # A NaN fails both comparisons. On a GPU the check would have to wait for the images, and is left out.
        if values and on_host(x) and len(x) and not (x.min() >= 0 and x.max() <= 1):
            raise InputError(f"{expected}, got values from {float(x.min()):g} to {float(x.max()):g}")

    def _check_codes(self, z, name, rows=None):
        if getattr(z, "ndim", None) != 2 or z.shape[1] != self.latent_dim or (rows is not None and rows != len(z)):
            raise InputError(f"expected {name} of shape ({rows or 'N'}, {self.latent_dim}), got {shape_or_type(z)}")
        # float64 noise would silently make every array after it float64.
        if z.dtype != self.dtype:
            raise InputError(f"expected {name} as a {self.dtype} array, got {z.dtype}")

    def __reduce__(self):
        """How copy.deepcopy and pickle make another one: parameters must be views into the arrays of the new model."""
        return restored, (self.settings, self.dtype, self.values, self.grads, self.prior)

    def __copy__(self):
        return copy.deepcopy(self)

    def __repr__(self):
        return (f"VAE(image_size={self.image_size}, channels={tuple(self.settings['channels'])}, "
                f"latent_dim={self.latent_dim}): {self.values.size:,} parameters")


def restored(settings, dtype, values, grads, prior):
    """A VAE of these settings that has these flat arrays, and this prior."""
    model = VAE(**settings, dtype=dtype)
    model.values, model.grads, model.prior = values, grads, prior
    bind(model.parameters, values, grads)
    return model


def require_images(images):
    """Raise InputError unless there are images, whose mean can be taken."""
    if not len(images):
        raise InputError("there are no images to take a mean over")


def shape_or_type(value):
    """How a message names what came where an array was expected: by its shape, or by its type if it is no array."""
    return f"shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
