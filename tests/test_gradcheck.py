"""The check itself: it must find right gradients right and wrong ones wrong."""

import importlib
import pkgutil

import numpy as np
import pytest

import vae_np
from tools import bugs
from vae_np import backend
from vae_np.backend import to_cpu, to_device
from vae_np.gradcheck import check_direction, check_layer, numerical_gradient, relative_error
from vae_np.layers import Dense, LeakyReLU, Sequential
from vae_np.losses import LIKELIHOODS
from vae_np.run import gradient_table
from vae_np.run.gradient_table import all_checks, layer_kinds, main


@pytest.mark.parametrize(("a", "b", "expected"), [
    ([3.0, 4.0], [3.0, 4.0], 0), ([0, 0], [0, 0], 0), ([3.0, 4.0], [-3.0, -4.0], 1), ([1.0], [3.0], 0.5),
    (np.zeros((2, 3)), np.zeros((3, 2)), np.inf), ([1.0], [np.nan], np.nan)])
def test_relative_error(a, b, expected):
    np.testing.assert_equal(relative_error(np.array(a), np.array(b)), expected)


def test_numerical_gradient_of_a_known_function():
    x = to_device(np.array([[0.5, -2.0, 3.0]]))
    gradient = numerical_gradient(lambda: (x**3).sum(), x)
    np.testing.assert_allclose(gradient, [[0.75, 12.0, 27.0]], rtol=1e-8)
    np.testing.assert_array_equal(to_cpu(x), [[0.5, -2.0, 3.0]])


class Transposed(Dense):
    """A Dense layer whose gradient of the weight is transposed."""

    def backward(self, dy):
        dx = super().backward(dy)
        self.weight.grad[...] = self.weight.grad.T.copy()
        return dx


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False), (-1.0, False), (0.0, False)])
def test_a_wrong_gradient_is_found_element_by_element_and_in_one_direction(factor, passes, rng):
    layer = LeakyReLU(0.3)
    layer.backward = lambda dy: factor * type(layer).backward(layer, dy)
    error = check_layer(layer, to_device(rng.standard_normal((3, 4))), rng)["input"]
    assert (error < 1e-6) is passes
    values = to_device(rng.standard_normal(50))
    before, gradient = to_cpu(values).copy(), 3 * factor * values**2

    def function():
        gradient[...] = 3 * factor * values**2  # left where a model leaves it, and overwritten by each call
        return (values**3).sum()

    error = check_direction(function, values, gradient, rng)
    assert (error < 1e-6) is passes
    np.testing.assert_array_equal(to_cpu(values), before)


def test_a_transposed_gradient_is_found_and_two_parameters_of_one_name_are_told_apart(rng):
    wrong, right = (kind(4, 4, rng, dtype="float64") for kind in (Transposed, Dense))
    errors = check_layer(Sequential(wrong, LeakyReLU(), right), to_device(rng.standard_normal((3, 4))), rng)
    assert list(errors) == ["input", "weight", "bias", "weight'", "bias'"]
    assert errors.pop("weight") > 1e-2
    assert max(errors.values()) < 1e-6


def test_no_layer_and_no_likelihood_is_forgotten():
    for module in pkgutil.iter_modules(vae_np.__path__, "vae_np."):
        importlib.import_module(module.name)  # a layer exists only once its module is imported
    kinds = {kind.__name__ for kind in layer_kinds()}
    assert kinds == {"Dense", "Conv2d", "ConvTranspose2d", "Enlarge", "LeakyReLU", "Reshape", "Sequential", "Shrink",
                     "Sum"}
    likelihoods = {kind.__name__ for kind in LIKELIHOODS.values()}
    assert kinds | likelihoods | {"KL", "Reparameterization", "ELBO", "FreeBits"} <= all_checks().keys()


def double(rng):
    return Dense(2, 2, rng, dtype="float64")


def unlisted(rng):
    layer = double(rng)
    layer.parameters = (layer.weight,)
    return layer


@pytest.mark.parametrize(("name", "make", "failure"), [
    ("Dense", double, None), ("LeakyReLU", double, "LeakyReLU (all of it has no example in layer_examples)"),
    ("Dense", lambda rng: Dense(2, 2, rng), 'Dense(2 -> 2) (all of it needs dtype="float64" in layer_examples)'),
    ("Dense", unlisted, "Dense(2 -> 2) (bias is not in the layer's parameters)")])
def test_an_example_that_is_missing_or_shows_too_little_fails(name, make, failure, monkeypatch, capsys):
    monkeypatch.setattr(gradient_table, "layer_examples", lambda rng: [(make(rng), (3, 2))])
    assert main(["--only", name]) == (failure is not None)
    assert capsys.readouterr().err.partition("did not pass: ")[2] == (f"{failure}\n" if failure else "")


def rows(output):
    return [line for line in output.splitlines() if line.endswith(("pass", "FAIL"))]


def test_the_table_names_every_gradient_and_passes(capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    whole = rows(output)
    assert all(row.endswith("pass") for row in whole)
    assert f"{len(whole)} gradients on {backend.NAME} in " in output
    for start in ("Dense(6 -> 4) ", "Conv2d(3 -> 5, 4x4, stride 2", "ConvTranspose2d(5 -> 3, 4x4, stride 2"):
        assert [row[64:].split()[0] for row in whole if row.startswith(start)] == ["input", "weight", "bias"]
    for start in ("Bernoulli()", "Gaussian(", "CalibratedGaussian(", "KL divergence", "Reparameterization"):
        assert any(row.startswith(start) for row in whole)
    assert sum("one random direction" in row for row in whole) == 2 * len(LIKELIHOODS) + 1  # and free bits
    for name in all_checks():  # alone, each check gives what it gives in the table
        assert main(["--only", name.lower()]) == 0
        assert set(rows(capsys.readouterr().out)) <= set(whole)


def test_a_gradient_that_is_wrong_or_no_number_fails_the_table_by_name(monkeypatch, capsys):
    monkeypatch.setattr(backend, "FASTER", {})  # bugs are planted into the core
    monkeypatch.setattr(LeakyReLU, "backward", lambda self, dy: dy * np.nan)
    for plant in (bugs.planted(bugs.BUGS["slope-forgotten"]), monkeypatch.context()):
        with plant:
            assert main(["--only", "leakyrelu"]) == 1
        captured = capsys.readouterr()
        assert rows(captured.out)[0].endswith("FAIL")
        assert captured.err.startswith("error: 1 of 1 gradients did not pass: LeakyReLU(0.2) (input")


def test_an_unknown_name_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "Conv3d"])
    line = capsys.readouterr().err
    assert line.startswith("error: argument --only: invalid choice: 'Conv3d'") and line.count("\n") == 1
