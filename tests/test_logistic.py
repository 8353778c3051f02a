"""Logistic regression against loops, finite differences and closed forms; the area under the curve against pairs."""

import math
import re

import numpy as np
import pytest

from vae_np.errors import InputError
from vae_np.gradcheck import numerical_gradient, relative_error
from vae_np.study.logistic import (
    LogisticRegression,
    area_error,
    area_under_curve,
    hessian,
    loss_and_gradient,
    newton,
    probability,
)


@pytest.fixture
def problem(rng):
    """Standardised columns, labels that depend on them, and parameters somewhere."""
    x = rng.standard_normal((60, 4))
    y = rng.random(60) < probability(x @ rng.standard_normal(4) - 0.5)
    return x, y, rng.standard_normal(5)


def test_the_loss_is_what_its_definition_says(problem):
    x, y, parameters = problem
    weight, bias = parameters[:-1], parameters[-1]
    expected = 0.5 * 0.3 * sum(weight**2)
    for row, label in zip(x, y, strict=True):
        p = 1 / (1 + math.exp(-sum(row * weight) - bias))
        expected -= math.log(p if label else 1 - p) / len(y)
    assert loss_and_gradient(parameters, x, y, 0.3)[0] == pytest.approx(expected, rel=1e-12)


def test_gradient_and_second_derivatives_are_those_of_the_loss(problem):
    x, y, parameters = problem
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
        np.testing.assert_array_equal(probability(np.array([-2000.0, 0.0, 2000.0])), [0, 0.5, 1])
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
    np.testing.assert_allclose(probability(classifier.scores(np.array([[1.0], [0.0]]))), [30 / 50, 8 / 40], rtol=1e-8)


def test_newton_ends_where_the_gradient_vanishes_and_a_penalty_spares_the_bias(problem):
    x, y, _ = problem
    for l2 in (1e-6, 1e-3, 1.0, 1e9):
        parameters = newton(x, y, l2)
        assert np.abs(loss_and_gradient(parameters, x, y, l2)[1]).max() < 1e-7
    assert np.abs(parameters[:-1]).max() < 1e-8
    assert probability(parameters[-1]) == pytest.approx(y.mean(), rel=1e-6)


def test_no_step_of_newton_lets_the_loss_rise():
    # Among heavy-tailed columns a whole step may go far too far: here the seventh, to seven times the loss.
    rng = np.random.default_rng(1041)
    x, y, l2 = np.exp(3 * rng.standard_normal((20, 2))), rng.random(20) < 0.3, 1e-6
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    losses = [loss_and_gradient(newton(x, y, l2, steps), x, y, l2)[0] for steps in range(30)]
    assert np.diff(losses).max() <= 0


def test_classes_that_can_be_separated_have_a_finite_weight():
    x = np.linspace(-1, 1, 20)[:, None]
    scores = LogisticRegression.fit(x, x[:, 0] > 0).scores(x)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores > 0, x[:, 0] > 0)


def test_columns_are_standardised_so_that_their_units_do_not_matter(problem):
    x, y, _ = problem
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    parameters = newton(standard, y, 0.1)
    scale, offset = np.array([1e-4, 1.0, 50.0, 1e4]), np.array([3.0, -1e3, 0.0, 7.0])
    first, second = LogisticRegression.fit(x, y, l2=0.1), LogisticRegression.fit(offset + scale * x, y, l2=0.1)
    np.testing.assert_allclose(first.scores(x), standard @ parameters[:-1] + parameters[-1], rtol=1e-9)
    np.testing.assert_allclose(second.scores(offset + scale * x), first.scores(x), rtol=1e-6)
    assert not np.allclose(first.scores(x), LogisticRegression.fit(x, y, l2=1e-6).scores(x), rtol=1e-2)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 7.0])  # the means of some are rounded
def test_a_constant_column_gets_no_weight_and_float32_is_fitted_in_float64(problem, value):
    x, y, _ = problem
    with_constant = np.column_stack([x, np.full(len(x), value)])
    assert LogisticRegression.fit(with_constant, y).weight[-1] == 0
    in_float32 = LogisticRegression.fit(with_constant.astype(np.float32), y)
    in_float64 = LogisticRegression.fit(with_constant.astype(np.float32).astype(np.float64), y)
    np.testing.assert_array_equal(in_float32.weight, in_float64.weight)
    np.testing.assert_allclose(in_float32.scores(with_constant), LogisticRegression.fit(x, y).scores(x), atol=1e-4)


@pytest.mark.parametrize(("x", "y", "l2", "complaint"), [
    (np.zeros(3), np.array([0, 1, 1]), 1.0, "expected x (N, D) and y (N,), got shapes (3,) and (3,)"),
    (np.zeros((3, 2)), np.array([0, 1]), 1.0, "got shapes (3, 2) and (2,)"),
    (np.array([[0.0], [np.nan]]), np.array([0, 1]), 1.0, "not finite"),
    (np.zeros((3, 2)), np.zeros(3), 1.0, "all 3 labels are the same"),
    (np.zeros((0, 2)), np.zeros(0), 1.0, "all 0 labels are the same"),
    (np.zeros((3, 2)), np.array([0, 1, 1]), 0.0, "l2 must be above 0, not 0.0"),
    (np.zeros((3, 2)), np.array([0, 1, 1]), np.nan, "l2 must be above 0, not nan"),
])  # fmt: skip
def test_what_cannot_be_fitted_is_one_line(x, y, l2, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)):
        LogisticRegression.fit(x, y, l2)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("count", [2, 3, 17, 60])
def test_the_area_is_the_share_of_pairs_in_order(levels, count, rng):
    y = rng.permutation(np.arange(count) < max(1, count // 3))
    scores = rng.integers(levels, size=count) + 0.5 * (levels > 1) * y
    wins = [(a > b) + (a == b) / 2 for a in scores[y] for b in scores[~y]]
    for labels in (y, y.astype(int)):
        assert area_under_curve(scores, labels) == pytest.approx(sum(wins) / len(wins), rel=1e-12)
    assert area_under_curve(1.0 * y, y) == 1
    for same in (y | True, y & False):
        with pytest.raises(InputError, match=f"all {count} labels are the same"):
            area_under_curve(scores, same)


@pytest.mark.parametrize(("positives", "negatives", "scale"), [(10, 30, 1), (10, 30, 3), (30, 10, 3), (30, 10, 20)])
def test_the_error_of_an_area_is_its_deviation_over_many_draws(positives, negatives, scale, rng):
    """Of exponential scores, for which the formula is exact: those of positives are larger by the factor scale."""
    y = np.arange(positives + negatives) < positives
    scores = rng.exponential(size=(4000, len(y))) * np.where(y, scale, 1)
    areas = np.array([area_under_curve(row, y) for row in scores])
    area = scale / (scale + 1)
    assert abs(areas.mean() - area) < 5 * area_error(area, positives, negatives) / math.sqrt(4000)
    assert areas.std() == pytest.approx(area_error(area, positives, negatives), rel=0.06)
    if scale == 1:
        assert area_error(0.5, positives, negatives) == pytest.approx(math.sqrt((len(y) + 1) / (12 * 300)), rel=1e-12)
    assert area_error(1.0, positives, negatives) == area_error(0.0, positives, negatives) == 0
