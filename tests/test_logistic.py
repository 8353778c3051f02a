"""Logistic regression against loops, finite differences and closed forms; the area under the curve against pairs."""

import math

import numpy as np
import pytest

from vae_np.errors import InputError
from vae_np.gradcheck import numerical_gradient, relative_error
from vae_np.study.logistic import LogisticRegression, area_under_curve, hessian, loss_and_gradient, newton, sigmoid


def problem(rng, count=60, columns=4):
    """Standardised columns, labels that depend on them, and parameters somewhere."""
    x = rng.standard_normal((count, columns))
    y = rng.random(count) < sigmoid(x @ rng.standard_normal(columns) - 0.5)
    return x, y, rng.standard_normal(columns + 1)


def test_the_loss_is_what_its_definition_says(rng):
    x, y, parameters = problem(rng)
    weight, bias = parameters[:-1].tolist(), parameters[-1].item()
    expected = 0.5 * 0.3 * sum(w * w for w in weight)
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        p = 1 / (1 + math.exp(-sum(a * b for a, b in zip(row, weight, strict=True)) - bias))
        expected -= math.log(p if label else 1 - p) / len(y)
    assert loss_and_gradient(parameters, x, y, 0.3)[0] == pytest.approx(expected, rel=1e-12)


def test_gradient_and_second_derivatives_are_those_of_the_loss(rng):
    x, y, parameters = problem(rng)
    _, gradient = loss_and_gradient(parameters, x, y, 0.3)
    numerical = numerical_gradient(lambda: loss_and_gradient(parameters, x, y, 0.3)[0], parameters)
    assert relative_error(gradient, numerical) < 1e-8
    second = hessian(parameters, x, 0.3)
    for i in range(len(parameters)):
        numerical = numerical_gradient(lambda i=i: loss_and_gradient(parameters, x, y, 0.3)[1][i], parameters)
        assert relative_error(second[i], numerical) < 1e-8
    assert np.linalg.eigvalsh(second).min() > 0


def test_large_scores_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(sigmoid(np.array([-2000.0, 0.0, 2000.0])), [0, 0.5, 1])
        loss, gradient = loss_and_gradient(np.array([1000.0, 0.0]), np.array([[2.0], [-2.0]]), np.array([0, 1]), 0.0)
    assert loss == 2000
    np.testing.assert_array_equal(gradient, [2, 0])


def test_one_yes_or_no_column_gives_the_logarithm_of_the_odds_ratio():
    # Of 50 with x = 1, 30 have y = 1; of 40 with x = 0, 8 have.
    x = np.repeat([1.0, 1.0, 0.0, 0.0], [30, 20, 8, 32])[:, None]
    y = np.repeat([True, False, True, False], [30, 20, 8, 32])
    classifier = LogisticRegression.fit(x, y, l2=1e-12)
    assert classifier.weight[0] == pytest.approx(math.log(30 / 20 * 32 / 8), rel=1e-8)
    assert classifier.bias == pytest.approx(math.log(8 / 32), rel=1e-8)
    np.testing.assert_allclose(sigmoid(classifier.scores(np.array([[1.0], [0.0]]))), [30 / 50, 8 / 40], rtol=1e-8)


def test_newton_ends_where_the_gradient_vanishes(rng):
    x, y, _ = problem(rng)
    for l2 in (1e-6, 1e-3, 1.0, 100.0):
        assert np.abs(loss_and_gradient(newton(x, y, l2), x, y, l2)[1]).max() < 1e-7


def test_no_step_of_newton_lets_the_loss_rise():
    # Among heavy-tailed columns a whole step may go far too far: here the seventh, to seven times the loss.
    rng = np.random.default_rng(1041)
    x, y, l2 = np.exp(3 * rng.standard_normal((20, 2))), rng.random(20) < 0.3, 1e-6
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    losses = [loss_and_gradient(newton(x, y, l2, steps), x, y, l2)[0] for steps in range(30)]
    assert np.diff(losses).max() <= 0


def test_a_penalty_shrinks_the_weight_and_not_the_bias(rng):
    x, y, _ = problem(rng)
    parameters = newton(x, y, 1e9)
    assert np.abs(parameters[:-1]).max() < 1e-8
    assert sigmoid(parameters[-1]) == pytest.approx(y.mean(), rel=1e-6)


def test_classes_that_can_be_separated_have_a_finite_weight():
    x = np.linspace(-1, 1, 20)[:, None]
    classifier = LogisticRegression.fit(x, x[:, 0] > 0)
    assert np.isfinite(classifier.weight).all()
    np.testing.assert_array_equal(classifier.scores(x) > 0, x[:, 0] > 0)


def test_what_is_recovered_from_many_answers_is_what_they_were_drawn_with(rng):
    x = rng.standard_normal((20_000, 3))
    truth = np.array([1.0, -2.0, 0.5])
    y = rng.random(len(x)) < sigmoid(x @ truth - 1)
    classifier = LogisticRegression.fit(x, y, l2=1e-6)
    np.testing.assert_allclose(classifier.weight, truth, atol=0.1)
    assert classifier.bias == pytest.approx(-1, abs=0.1)


def test_units_of_the_columns_do_not_matter(rng):
    x, y, _ = problem(rng)
    scale, offset = np.array([1e-4, 1.0, 50.0, 1e4]), np.array([3.0, -1e3, 0.0, 7.0])
    first, second = LogisticRegression.fit(x, y, l2=0.1), LogisticRegression.fit(offset + scale * x, y, l2=0.1)
    np.testing.assert_allclose(second.scores(offset + scale * x), first.scores(x), rtol=1e-6)
    assert not np.allclose(first.scores(x), LogisticRegression.fit(x, y, l2=1e-6).scores(x), rtol=1e-2)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
def test_a_constant_whose_mean_is_rounded_gets_no_weight(rng, value):
    x, y, _ = problem(rng)
    assert LogisticRegression.fit(np.column_stack([x, np.full(len(x), value)]), y).weight[-1] == 0


def test_a_constant_column_gets_no_weight_and_float32_is_fitted_in_float64(rng):
    x, y, _ = problem(rng)
    with_constant = np.column_stack([x, np.full(len(x), 7.0)]).astype(np.float32)
    classifier = LogisticRegression.fit(with_constant, y)
    assert classifier.weight[-1] == 0
    in_float64 = LogisticRegression.fit(with_constant.astype(np.float64), y)
    np.testing.assert_array_equal(classifier.weight, in_float64.weight)
    np.testing.assert_allclose(classifier.scores(with_constant), LogisticRegression.fit(x, y).scores(x), atol=1e-4)


@pytest.mark.parametrize(
    ("x", "y", "l2", "complaint"),
    [
        (np.zeros(3), np.array([0, 1, 1]), 1.0, "expected x (N, D) and y (N,), got shapes (3,) and (3,)"),
        (np.zeros((3, 2)), np.array([0, 1]), 1.0, "got shapes (3, 2) and (2,)"),
        (np.array([[0.0], [np.nan]]), np.array([0, 1]), 1.0, "not finite"),
        (np.zeros((3, 2)), np.ones(3), 1.0, "all 3 labels are the same"),
        (np.zeros((3, 2)), np.zeros(3), 1.0, "all 3 labels are the same"),
        (np.zeros((0, 2)), np.zeros(0), 1.0, "all 0 labels are the same"),
        (np.zeros((3, 2)), np.array([0, 1, 1]), 0.0, "l2 must be above 0, not 0.0"),
        (np.zeros((3, 2)), np.array([0, 1, 1]), np.nan, "l2 must be above 0, not nan"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(x, y, l2, complaint):
    with pytest.raises(InputError) as caught:
        LogisticRegression.fit(x, y, l2)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def by_pairs(scores, y):
    """The share of pairs in which the positive scores higher, ties counted by half."""
    wins = [(a > b) + (a == b) / 2 for a in scores[y].tolist() for b in scores[~y].tolist()]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_area_is_the_share_of_pairs_in_order(levels, rng):
    for count in (2, 3, 17, 60):
        y = rng.permutation(np.arange(count) < max(1, count // 3))
        scores = rng.integers(levels, size=count) + 0.5 * y
        assert area_under_curve(scores, y) == pytest.approx(by_pairs(scores, y), rel=1e-12)


def test_the_area_of_perfect_inverted_and_constant_scores():
    y = np.array([True, False, False, True, False])
    assert area_under_curve(y.astype(float), y) == 1
    assert area_under_curve(-y.astype(float), y) == 0
    assert area_under_curve(np.zeros(5), y) == 0.5
    assert area_under_curve(np.zeros(5), y.astype(int)) == 0.5


@pytest.mark.parametrize("y", [np.ones(3, bool), np.zeros(3, bool)])
def test_the_area_needs_both_answers(y):
    with pytest.raises(InputError, match="all 3 labels are the same"):
        area_under_curve(np.arange(3.0), y)
