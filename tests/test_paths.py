"""One reference, many paths: plain, numpy and cupy give the same numbers, each from a process of its own.

The golden curve is both terms of the loss in twenty steps of training, to nine digits, as they were and have to be.
Whatever the mathematics of a step touches is in these numbers: the initial weights, the noise, layers, losses, their
gradients, clipping, Adam, both schedules. A change that makes code clearer or faster must not move them.

    python tests/figures.py

prints them anew, to be pasted below. That is right after a deliberate change of the mathematics, such as another
initialization, and whoever makes it says so; and where the first test fails, too, because the images of the tests are
others now, or the random numbers of a new NumPy. It is wrong while nobody can say why the numbers moved.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vae_np import backend

TESTS = Path(__file__).parent
PATHS = ["plain", "numpy", "cupy"]

# (recon, kl) of each step, in nats per image.
GOLDEN = {
    "bernoulli": [
        (616.449878101152, 0.614892809935188), (585.0493573234671, 0.09994967740854266),
        (563.2499240327519, 0.07009324756080339), (569.2817268930085, 0.10064075991704523),
        (553.9597067340087, 0.05760981550375776), (537.1036667237978, 0.08973864023797642),
        (538.6037861176063, 0.17599484258152906), (540.7397458778086, 0.13170823315137054),
        (538.5007464420003, 0.20738865248597751), (533.7947694953278, 0.41375944206426496),
        (532.0454226910344, 0.33696989835172064), (529.5792308120353, 0.46399583572047937),
        (530.7099869242395, 0.7226245185398465), (532.8170499325142, 0.5388321666501181),
        (526.703241020819, 0.6510065371431026), (527.1354600079703, 0.9038225945251037),
        (530.3335254885995, 0.6457064151764533), (526.6335180793494, 0.7282693748017416),
        (527.7440323537858, 0.9600511184903883), (529.8426038009861, 0.6750949066045699),
    ],
    "calibrated": [
        (79.2075044535473, 0.614892809935188), (-20.35030958157597, 0.09642200360745475),
        (4.454047959691366, 0.0655770589484437), (-17.244748793038013, 0.0890185061149308),
        (-119.75257078485703, 0.05228276315846837), (-91.69124309850366, 0.08001632587482772),
        (-141.27852502829342, 0.18017399231507364), (-189.30492494657653, 0.21119637037544015),
        (-96.23024917996196, 0.3530604217925959), (-177.07647193376556, 0.6320812088872785),
        (-245.0033991441835, 0.7945664314628916), (-142.8118015286915, 0.9426964500992051),
        (-204.66376636842898, 1.2056170293629407), (-264.7380567003044, 1.2659620848129358),
        (-155.66293555482343, 1.3043162189608895), (-224.38868885678835, 1.524333133493963),
        (-283.90180573490437, 1.5356419401001498), (-171.2305932667312, 1.4796923741843109),
        (-231.43777956438322, 1.6457744076927767), (-277.20754082075126, 1.6293843046111816),
    ],
}  # fmt: skip


def run_on(path, *command):
    """Run Python on a path: cupy is the stand-in, unless these tests run on a CuPy already. Returns what it prints."""
    folders = [TESTS.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    if path == "cupy" and backend.NAME != "cupy":
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            pytest.skip("needs VAE_BACKEND=cupy, or a C++ compiler for the stand-in")
        folders.insert(0, TESTS / "stand_in")
    environment = {**os.environ, "VAE_BACKEND": path, "PYTHONPATH": os.pathsep.join(map(str, folders)),
                   "OPENBLAS_NUM_THREADS": "1"}  # threads cost much on a busy machine, and gain nothing here
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600,
                            check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What tests/figures.py writes on a path: figures(path) is {name: array}."""
    @functools.cache
    def on(path):
        out = tmp_path_factory.mktemp("figures") / f"{path}.npz"
        run_on(path, TESTS / "figures.py", out)
        with np.load(out) as file:
            found = dict(file)
        assert found.pop("backend") == path
        return found

    return on


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
@pytest.mark.parametrize("path", PATHS)
def test_training_follows_the_golden_curve(path, likelihood, threads, figures):
    np.testing.assert_allclose(figures(path)[f"golden {likelihood} {threads}"], GOLDEN[likelihood], rtol=1e-9)


@pytest.mark.parametrize(("kind", "tolerance"), [("output", 1e-5), ("loss", 1e-4), ("gradient", 1e-4), ("curve", 1e-3)])
@pytest.mark.parametrize("path", PATHS[1:])
def test_a_whole_model_computes_what_the_plain_one_does(path, kind, tolerance, figures):
    """Up to the rounding of float32: the largest difference, beside the largest number of each array."""
    expected, found = figures("plain"), figures(path)
    names = [name for name in expected if name.startswith(kind)]
    assert names and found.keys() == expected.keys()
    for name in names:
        assert (found[name].shape, found[name].dtype) == (expected[name].shape, expected[name].dtype)
        assert np.abs(found[name] - expected[name]).max() <= tolerance * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("path", PATHS)
def test_every_gradient_is_right(path):
    assert f" gradients on {path} in " in run_on(path, "-m", "vae_np.gradcheck")
