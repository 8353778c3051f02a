"""Can drawn pictures be told from others? A small network learns to; how well it does is the figure.

PSNR cannot say: a drawn face has no original that it should be equal to.
"""

import numpy as np
from threadpoolctl import threadpool_limits

from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d
from vae_np.errors import InputError
from vae_np.layers import Dense, LeakyReLU, Reshape, Sequential, pack
from vae_np.losses import Bernoulli
from vae_np.optim import Adam, learning_rate_at
from vae_np.study.logistic import area_error, area_under_curve
from vae_np.vae import PART, shape_or_type


def judge(real, drawn, seed=0, steps=800):
    """Let a network learn to tell two sets of pictures apart: the area under its ROC curve, and its standard error.

    0.5: it cannot; 1: it always can. real and drawn are float32 (N, H, W, 3) in [0, 1], not necessarily equally many.
    It learns from a random half of each and is judged by the other, which it has never seen; so no picture may be in a
    set twice. This is the classifier two-sample test of Lopez-Paz and Oquab (2017), with an area in place of the share
    of right answers.

    To judge a prior and nothing else, let both come out of the decoder: `drawn` from codes of the prior, `real` from
    codes of held-out faces, each drawn from its posterior. Photographs are too easy, since they are sharp, and so are
    reconstructions through mu, which lack the noise of a code. The more pictures to learn from, the better the judge:
    compare figures from equally many. error says nothing of that, only how few pictures it was judged by.

    The same seed gives the same figure. Raises InputError for pictures that do not fit.
    """
    for name, x in (("real", real), ("drawn", drawn)):
        check(name, x, np.shape(real)[1:])
    rng = np.random.default_rng(seed)
    (real_seen, real_new), (drawn_seen, drawn_new) = (
        np.split(x[rng.permutation(len(x))], [len(x) // 2]) for x in (real, drawn))
    with threadpool_limits(1, "blas"):  # products so small lose more by a second thread than they gain
        network = learn(real_seen, drawn_seen, rng, steps)
        scores = [score(network, x) for x in (real_new, drawn_new)]
    area = area_under_curve(np.concatenate(scores), np.repeat([True, False], [len(real_new), len(drawn_new)]))
    return float(area), area_error(area, len(real_new), len(drawn_new))


def check(name, x, shape):
    """Raise InputError unless x are two or more pictures of this shape (H, W, 3), float32 in [0, 1]."""
    expected = f"expected {name} pictures as a float32 array (N, H, W, 3) with values in [0, 1]"
    if getattr(x, "ndim", None) != 4 or x.shape[-1] != 3:
        raise InputError(f"{expected}, got {shape_or_type(x)}")
    if x.dtype != np.float32:
        raise InputError(f"{expected}, got {x.dtype}")
    if len(x) < 2:
        raise InputError(f"{expected}, two at least: one to learn from and one to judge; got {len(x)}")
    if x.shape[1:] != shape:
        raise InputError(f"{name} pictures are {x.shape[1:]}, the others {shape}: a judge would see that alone")
    if not (x.min() >= 0 and x.max() <= 1):  # a NaN fails both
        raise InputError(f"{expected}, got values from {float(x.min()):g} to {float(x.max()):g}")


def build(shape, rng):
    """Pictures (N, H, W, 3) -> logits (N, 1): 8x8 stride-4 convolutions until a side is at most 4, two dense layers.

    What gives a sample away is seldom a detail: large kernels, which soon see a whole face, learn it in fewer steps.
    """
    (h, w, inputs), outputs, layers = shape, 16, []
    while min(h, w) > 4:
        activation = LeakyReLU(0.2)
        layers += [Conv2d(inputs, outputs, 8, rng, stride=4, padding=2, gain=activation.gain), activation]
        h, w, inputs, outputs = h // 4, w // 4, outputs, 64
    flat, activation = h * w * inputs, LeakyReLU(0.2)
    return Sequential(*layers, Reshape(flat), Dense(flat, 64, rng, activation.gain), activation, Dense(64, 1, rng))


def learn(real, drawn, rng, steps, batch_size=32, learning_rate=2e-3):
    """A network whose logits are high for `real` and low for `drawn`: cross-entropy, Adam, half of a batch of each.

    Every second batch or so is mirrored, in which case all of it is: without, a network soon knows a few hundred
    pictures by heart. It is blind to left and right for that.
    """
    network, likelihood, half = build(real.shape[1:], rng), Bernoulli(), batch_size // 2
    adam = Adam(*pack(network.parameters))
    answers = to_device(np.repeat(np.float32([1, 0]), half)[:, None])
    for step in range(steps):
        x = np.concatenate([part[rng.integers(len(part), size=half)] for part in (real, drawn)])
        logits = network.forward(centred(x[:, :, ::-1] if rng.random() < 0.5 else x))
        network.backward_parameters(likelihood(logits, answers)[1])
        adam.update(learning_rate_at(step, steps, learning_rate))
    return network


def centred(x):
    """What the network sees of pictures x in [0, 1]: 4 (x - 0.5), on the device, around 0 with deviation near 1."""
    return to_device(4 * (x - np.float32(0.5)))


def score(network, x):
    """The logit of every picture of x: (N,)."""
    parts = (network.forward(centred(x[start : start + PART])) for start in range(0, len(x), PART))
    return np.concatenate([to_cpu(part)[:, 0] for part in parts])
