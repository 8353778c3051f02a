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
        (661.9541934443662, 2.9910521839617656), (623.6706293179888, 1.1478430450411636),
        (630.6299246738981, 2.4158291661062226), (598.803364868241, 1.192540538284454),
        (584.2543114239807, 0.5594579152673358), (556.1565130691972, 1.4071021804193533),
        (561.267530857534, 0.9639911981486748), (542.1534767675874, 0.5901800589647923),
        (572.7026189594826, 1.2681250176445313), (557.4639992758422, 0.9617968886193682),
        (540.6818512269624, 0.7502299970225287), (542.3836371747115, 1.230893080093656),
        (541.9096839657082, 0.9181226924232255), (552.8565238086626, 0.7013023349268707),
        (525.7929064088415, 1.093854166155066), (529.6471238541535, 0.869581886413058),
        (539.4136086245086, 0.6831166871589098), (529.5156700131611, 1.0636294110422828),
        (538.153729702542, 0.8660017651813197), (544.3063989147229, 0.6797931049404176),
    ],
    "calibrated": [
        (163.09265994848494, 2.9910521839617656), (89.43638877870814, 1.1650397413023756),
        (147.5105193799657, 2.4818144190198534), (78.32012376539546, 1.2451888166773104),
        (16.196354552444348, 0.5866256617837426), (16.296136219134496, 1.5574587195812963),
        (-14.796144066762565, 1.045663430616547), (-90.64688813444684, 0.6310817887007633),
        (30.232620685617462, 1.428890437989061), (-41.096314098251355, 1.0743998638689498),
        (-115.97032198219387, 0.8440109675152951), (-62.786189757958425, 1.3933629588366379),
        (-105.87686579259284, 1.0357189667742277), (-96.63096788524342, 0.7885870368750649),
        (-130.9044976250734, 1.2688765561420385), (-159.07637564381187, 1.0128233751040847),
        (-157.25210936566125, 0.7783656050153416), (-149.846454233188, 1.2573745319801022),
        (-148.3942047475038, 1.029123838898385), (-162.1930945732559, 0.7736609328935466),
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
