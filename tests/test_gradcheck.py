"""The check itself: it must find right gradients right and wrong ones wrong."""

import importlib
import pkgutil

import numpy as np
import pytest

import vae_np
from tools import bugs
from vae_np import gradcheck
from vae_np.backend import to_cpu, to_device
from vae_np.gradcheck import (
    all_checks,
    check_direction,
    check_layer,
    layer_examples,
    layer_kinds,
    main,
    numerical_gradient,
    relative_error,
)
from vae_np.layers import Dense, Layer, LeakyReLU, Sequential
from vae_np.losses import LIKELIHOODS


def test_relative_error():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.array([3.0, 4.0]), np.array([-3.0, -4.0])) == 1
    assert relative_error(np.array([1.0]), np.array([3.0])) == 0.5
    assert relative_error(np.zeros((2, 3)), np.zeros((3, 2))) == np.inf
    assert np.isnan(relative_error(np.array([1.0]), np.array([np.nan])))


def test_numerical_gradient_of_a_known_function():
    x = to_device(np.array([[0.5, -2.0, 3.0]]))
    gradient = numerical_gradient(lambda: (x**3).sum(), x)
    np.testing.assert_allclose(gradient, [[0.75, 12.0, 27.0]], rtol=1e-8)
    np.testing.assert_array_equal(to_cpu(x), [[0.5, -2.0, 3.0]])


class Square(Layer):
    """y = x^2 with a gradient that is off by a factor."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, dy):
        return self.factor * 2 * self.x * dy


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False), (-1.0, False), (0.0, False)])
def test_a_wrong_gradient_is_found(factor, passes, rng):
    error = check_layer(Square(factor), to_device(rng.standard_normal((3, 4))), rng)["input"]
    assert (error < 1e-6) is passes


def test_a_transposed_gradient_is_found(rng):
    class Transposed(Dense):
        def backward(self, dy):
            dx = super().backward(dy)
            self.weight.grad[...] = self.weight.grad.T.copy()
            return dx

    layer = Transposed(4, 4, rng, dtype="float64")
    errors = check_layer(layer, to_device(rng.standard_normal((3, 4))), rng)
    assert errors["weight"] > 1e-2
    assert max(errors["input"], errors["bias"]) < 1e-6


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False)])
def test_one_direction_finds_a_wrong_gradient(factor, passes, rng):
    values = to_device(rng.standard_normal(50))
    before = values.copy()
    error = check_direction(lambda: (values**3).sum(), values, factor * 3 * values**2, rng)
    assert (error < 1e-6) is passes
    np.testing.assert_array_equal(to_cpu(values), to_cpu(before))


def test_two_parameters_of_one_name_are_both_checked(rng):
    class First(Dense):
        def backward(self, dy):
            dx = super().backward(dy)
            self.weight.grad[...] *= 2
            return dx

    network = Sequential(First(5, 4, rng, dtype="float64"), LeakyReLU(), Dense(4, 2, rng, dtype="float64"))
    errors = check_layer(network, to_device(rng.standard_normal((3, 5))), rng)
    assert list(errors) == ["input", "weight", "bias", "weight'", "bias'"]
    assert errors["weight"] > 0.1 > 1e-6 > errors["weight'"]


def test_no_layer_and_no_likelihood_is_forgotten(rng):
    for module in pkgutil.iter_modules(vae_np.__path__, "vae_np."):
        importlib.import_module(module.name)  # a layer exists only once its module is imported
    examples = [type(layer) for layer, _ in layer_examples(rng)]
    assert {kind.__name__ for kind in layer_kinds()} >= {"Dense", "Conv2d", "ConvTranspose2d", "LeakyReLU", "Reshape"}
    for kind in layer_kinds():
        assert kind in examples, f"add an example of {kind.__name__} to layer_examples in vae_np/gradcheck.py"
    names = all_checks().keys()
    assert {kind.__name__ for kind in (*layer_kinds(), *LIKELIHOODS.values())} <= names
    assert {"KL", "Reparameterization", "ELBO"} <= names


def test_a_layer_without_an_example_fails(rng, monkeypatch, capsys):
    monkeypatch.setattr(gradcheck, "layer_examples", lambda rng: [(Dense(2, 2, rng, dtype="float64"), (3, 2))])
    assert main(["--only", "Dense"]) == 0
    assert main(["--only", "LeakyReLU"]) == 1
    captured = capsys.readouterr()
    line = "error: 1 of 1 gradients did not pass: LeakyReLU (all of it has no example in layer_examples)\n"
    assert captured.err == line


def test_an_example_with_float32_weights_is_named_instead_of_failing_by_a_little(rng, monkeypatch, capsys):
    monkeypatch.setattr(gradcheck, "layer_examples", lambda rng: [(Dense(2, 2, rng), (3, 2))])
    assert main(["--only", "Dense"]) == 1
    assert 'Dense(2 -> 2) (all of it needs dtype="float64" in layer_examples)' in capsys.readouterr().err


def test_a_parameter_that_its_layer_does_not_list_fails(rng, monkeypatch, capsys):
    layer = Dense(2, 2, rng, dtype="float64")
    layer.parameters = (layer.weight,)
    monkeypatch.setattr(gradcheck, "layer_examples", lambda rng: [(layer, (3, 2))])
    assert main(["--only", "Dense"]) == 1
    assert "Dense(2 -> 2) (bias is not in the layer's parameters)" in capsys.readouterr().err


def rows(output):
    return [line for line in output.splitlines() if line.endswith(("pass", "FAIL"))]


def test_the_table_names_every_gradient_and_passes(capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    whole = rows(output)
    assert all(row.endswith("pass") for row in whole)
    assert f"{len(whole)} gradients on" in output
    for start in ("Dense(6 -> 4) ", "Conv2d(3 -> 5, 4x4, stride 2", "ConvTranspose2d(5 -> 3, 4x4, stride 2"):
        parts = [row[64:].split()[0] for row in whole if row.startswith(start)]
        assert parts == ["input", "weight", "bias"]
    for start in ("Bernoulli()", "Gaussian(", "CalibratedGaussian(", "KL divergence", "Reparameterization"):
        assert any(row.startswith(start) for row in whole)
    assert sum("one random direction" in row for row in whole) == 2 * len(LIKELIHOODS) + 1  # and free bits
    for name in all_checks():  # alone, each check gives what it gives in the table
        assert main(["--only", name.lower()]) == 0
        assert set(rows(capsys.readouterr().out)) <= set(whole)


def test_a_wrong_gradient_fails_the_table_by_name(capsys):
    with bugs.planted(bugs.BUGS["slope-forgotten"]):
        assert main(["--only", "LeakyReLU"]) == 1
    captured = capsys.readouterr()
    assert rows(captured.out)[0].endswith("FAIL")
    assert captured.err == "error: 1 of 1 gradients did not pass: LeakyReLU(0.2) (input)\n"


def test_an_error_that_is_not_a_number_does_not_pass(monkeypatch, capsys):
    monkeypatch.setattr(LeakyReLU, "backward", lambda self, dy: dy * np.nan)
    assert main(["--only", "leakyrelu"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_unknown_name_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "Conv3d"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: argument --only: invalid choice: 'Conv3d'")
    assert line.count("\n") == 1
