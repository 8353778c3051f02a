"""The golden curve: both terms of the loss in twenty steps of training, to nine digits, as they were and have to be.

Whatever the mathematics of a step touches is in these numbers: the initial weights, the noise, layers, losses, their
gradients, clipping, Adam, both schedules. A change that makes code clearer or faster must not move them.

    python tests/test_golden.py

prints them anew, to be pasted below. That is right after a deliberate change of the mathematics, such as another
initialization, and whoever makes it says so; and where the first test fails, too, because the images of the tests are
others now, or the random numbers of a new NumPy. It is wrong while nobody can say why the numbers moved.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset

from vae_np import VAE
from vae_np.backend import to_device
from vae_np.run.trainer import Settings, Trainer

STEPS = 20

# (recon, kl) of each step, in nats per image.
GOLDEN = {
    "bernoulli": [
        (616.449878101152, 0.614892809935188),
        (585.0493573234671, 0.09994967740854266),
        (563.2499240327519, 0.07009324756080339),
        (569.2817268930085, 0.10064075991704523),
        (553.9597067340087, 0.05760981550375776),
        (537.1036667237978, 0.08973864023797642),
        (538.6037861176063, 0.17599484258152906),
        (540.7397458778086, 0.13170823315137054),
        (538.5007464420003, 0.20738865248597751),
        (533.7947694953278, 0.41375944206426496),
        (532.0454226910344, 0.33696989835172064),
        (529.5792308120353, 0.46399583572047937),
        (530.7099869242395, 0.7226245185398465),
        (532.8170499325142, 0.5388321666501181),
        (526.703241020819, 0.6510065371431026),
        (527.1354600079703, 0.9038225945251037),
        (530.3335254885995, 0.6457064151764533),
        (526.6335180793494, 0.7282693748017416),
        (527.7440323537858, 0.9600511184903883),
        (529.8426038009861, 0.6750949066045699),
    ],
    "calibrated": [
        (79.2075044535473, 0.614892809935188),
        (-20.35030958157597, 0.09642200360745475),
        (4.454047959691366, 0.0655770589484437),
        (-17.244748793038013, 0.0890185061149308),
        (-119.75257078485703, 0.05228276315846837),
        (-91.69124309850366, 0.08001632587482772),
        (-141.27852502829342, 0.18017399231507364),
        (-189.30492494657653, 0.21119637037544015),
        (-96.23024917996196, 0.3530604217925959),
        (-177.07647193376556, 0.6320812088872785),
        (-245.0033991441835, 0.7945664314628916),
        (-142.8118015286915, 0.9426964500992051),
        (-204.66376636842898, 1.2056170293629407),
        (-264.7380567003044, 1.2659620848129358),
        (-155.66293555482343, 1.3043162189608895),
        (-224.38868885678835, 1.524333133493963),
        (-283.90180573490437, 1.5356419401001498),
        (-171.2305932667312, 1.4796923741843109),
        (-231.43777956438322, 1.6457744076927767),
        (-277.20754082075126, 1.6293843046111816),
    ],
}  # fmt: skip


def trainer_for(dataset, likelihood, threads):
    """A trainer in float64. Three steps an epoch: the learning rate rises for 2 steps and falls, beta rises for 9."""
    # This norm clips the first step of the one likelihood, and some steps of the other.
    settings = Settings(epochs=7, batch_size=8, learning_rate=0.01, warmup_steps=2, beta_warmup_epochs=3,
                        likelihood=likelihood, max_gradient_norm=250)
    return Trainer(VAE(16, channels=(4, 6), latent_dim=3, dtype="float64"), dataset, settings, threads)


def curve(dataset, likelihood, threads):
    """[(recon, kl), ...] of every step."""
    trainer, terms = trainer_for(dataset, likelihood, threads), []
    images = dataset.split("train") / 255
    for step in range(STEPS):
        start = 8 * (step % 3)
        recon, kl, _, _ = trainer.train_step(to_device(images[start : start + 8]))
        terms.append((float(recon), float(kl)))
    return terms


def test_the_images_and_the_random_numbers_are_what_they_were(ramps):
    pixels = np.ascontiguousarray(ramps.split("train")).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "98ea0423a59842bf30861a8aa17a0d22bdda5196216301ccc13c1dbd2ce2fea1"
    # The streams that weights and noise are drawn from.
    for seed, numbers in (
        (0, [0.1257302210933933, -0.1321048632913019, 0.6404226504432821]),
        ([0, 1], [0.10296768001436127, -0.9805271710302613, -0.8174783249223175]),
    ):
        np.testing.assert_allclose(np.random.default_rng(seed).standard_normal(3), numbers, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("likelihood", GOLDEN)
def test_training_follows_the_golden_curve(likelihood, threads, ramps):
    np.testing.assert_allclose(curve(ramps, likelihood, threads), GOLDEN[likelihood], rtol=1e-9)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dataset = write_dataset(Path(folder) / "ramps")
        for likelihood in ("bernoulli", "calibrated"):
            print(f'    "{likelihood}": [')
            for recon, kl in curve(dataset, likelihood, threads=1):
                print(f"        ({recon!r}, {kl!r}),")
            print("    ],")
