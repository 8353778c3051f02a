"""The two networks of a VAE: convolutions, and a shortcut beside them.

    encoder   for every entry of channels a 4x4 convolution of stride 2 and LeakyReLU(0.2), then one dense layer
    decoder   dense, LeakyReLU, and the mirror image in 4x4 transposed convolutions, no LeakyReLU behind the last
    shortcut  encoder: the mean over 4x4 pixels, and a dense layer; decoder: a dense layer to a picture as small, which
              is enlarged, 4 times as wide and high; what comes of both paths is added

A deep network may take long to find a direction in which images vary, such as the hue of a background: all its layers
have to find it together (Saxe, McClelland and Ganguli 2014 have the theory, for linear ones). With one layer on each
side it takes an epoch. So what is large and linear goes by the shortcut, as in principal components.
"""

from vae_np.conv import Conv2d, ConvTranspose2d, Enlarge, Shrink
from vae_np.errors import InputError, whole_number
from vae_np.layers import Dense, LeakyReLU, Reshape, Sequential, Sum

QUARTER = 4  # 4x4 pixels become one


def check_settings(image_size, channels, latent_dim):
    """These settings of a VAE as Python's whole numbers. Raises InputError unless one can be built with them."""
    if not hasattr(channels, "__len__") or not len(channels):
        raise InputError(f"channels must be a list of one or more whole numbers, such as [24, 48], not {channels!r}")
    channels = [whole_number(number, "each of channels", least=1) for number in channels]
    image_size = whole_number(image_size, "image_size", least=1)
    latent_dim = whole_number(latent_dim, "latent_dim", least=1)
    factor = 2 ** len(channels)
    if image_size < factor or image_size % factor:
        near = max(factor, round(image_size / factor) * factor)
        raise InputError(f"image_size must be divisible by {factor}, since {len(channels)} layers halve it; "
                         f"{image_size} is not, {near} is; fewer channels are fewer layers")
    return image_size, channels, latent_dim


def stage(convolution, inputs, outputs, rng, dtype):
    """What halves an image, or doubles it: a 4x4 convolution of stride 2, transposed or not, and LeakyReLU."""
    activation = LeakyReLU(0.2)
    return convolution(inputs, outputs, 4, rng, stride=2, padding=1, gain=activation.gain, dtype=dtype), activation


def build_encoder(image_size, channels, latent_dim, shortcut, rate, rng, dtype):
    """Images (N, S, S, 3) -> (N, 2 * latent_dim), what mu and log_var are made of; dense weights learn at `rate`."""
    layers, inputs = [], 3
    for outputs in channels:
        layers += stage(Conv2d, inputs, outputs, rng, dtype)
        inputs = outputs
    flat, factor = (image_size // 2 ** len(channels)) ** 2 * inputs, min(QUARTER, 2 ** len(channels))
    paths = [Sequential(*layers, Reshape(flat), Dense(flat, 2 * latent_dim, rng, dtype=dtype, rate=rate))]
    if shortcut:
        flat = (image_size // factor) ** 2 * 3
        paths.append(Sequential(Shrink(factor), Reshape(flat),
                                Dense(flat, 2 * latent_dim, rng, dtype=dtype, rate=rate)))
    return Sum(*paths)


def build_decoder(image_size, channels, latent_dim, shortcut, rng, dtype):
    """Codes (N, latent_dim) -> logits (N, S, S, 3)."""
    inputs, side, activation = channels[-1], image_size // 2 ** len(channels), LeakyReLU(0.2)
    layers = [Dense(latent_dim, side * side * inputs, rng, activation.gain, dtype), activation,
              Reshape(side, side, inputs)]
    for outputs in reversed(channels[:-1]):
        layers += stage(ConvTranspose2d, inputs, outputs, rng, dtype)
        inputs = outputs
    paths = [Sequential(*layers, ConvTranspose2d(inputs, 3, 4, rng, stride=2, padding=1, dtype=dtype))]
    if shortcut:
        factor = min(QUARTER, 2 ** len(channels))
        side = image_size // factor
        paths.append(Sequential(Dense(latent_dim, side * side * 3, rng, dtype=dtype), Reshape(side, side, 3),
                                Enlarge(factor)))
    return Sum(*paths)
