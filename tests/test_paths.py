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
        (698.7196977083099, 2.9910521839617656), (657.3441808867252, 1.1492580621252717),
        (668.2241910911354, 2.4232665141361145), (626.6478511454309, 1.2017025619166566),
        (608.9851042201046, 0.5569876492804738), (578.3607021085304, 1.4127333647122091),
        (583.8869518056856, 0.9651537414612732), (553.4920961879443, 0.5710760410908251),
        (605.1793791081645, 1.2315797498201917), (578.7593387261556, 0.9599535036429158),
        (556.2586011310964, 0.7361540238623114), (565.757765046679, 1.1488893203984811),
        (555.6025831876465, 0.8933275521989872), (568.1468895124855, 0.648617002709477),
        (537.4587058468569, 0.9989743890532183), (538.5899250349815, 0.8495224412488226),
        (553.5622025525723, 0.6311589352851514), (542.1375059964204, 0.96852549480942),
        (551.5549332688838, 0.8525527530902803), (555.4799434003755, 0.6276543032819046),
    ],
    "calibrated": [
        (209.19327637873704, 2.9910521839617656), (138.81783344316898, 1.1640181220566934),
        (197.570931341453, 2.486989199938634), (122.2846953464383, 1.252751522876224),
        (57.643262624556115, 0.5878544127943357), (66.18877923812133, 1.5679339999039494),
        (33.20443789983605, 1.0373729655449906), (-48.06535217972268, 0.6060583783347061),
        (97.92629919741927, 1.3541371560394708), (17.370705111951906, 1.0270534768209458),
        (-65.32799695247098, 0.7697928949497773), (5.3774601409880916, 1.2772958524386713),
        (-48.71274504610926, 0.9837990595989716), (-43.13022975578815, 0.7398696832437095),
        (-73.13752464370856, 1.1499480289715593), (-105.249605927322, 0.9491725633334293),
        (-98.60538877074475, 0.7231684506236846), (-87.60136101133355, 1.1288547302964183),
        (-85.82385949477481, 0.9552437633003178), (-107.65085147541703, 0.71767780239212),
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
