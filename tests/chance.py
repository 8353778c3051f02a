"""Is it random as it should be? Assertions whose bounds follow from the count of the numbers: 5 standard errors.

By chance, a mean of many independent numbers is off by more than that once in two million times, a variance or a
correlation nearly as seldom. Tests fix their seeds, so a right program passes every time; should another release of
NumPy draw other numbers for them, it will still pass.
"""

import math

import numpy as np


def assert_like_draws(numbers, mean, variance):
    """Assert that independent normal numbers (count, columns) have this mean and this variance in every column."""
    numbers, count = np.asarray(numbers, np.float64), len(numbers)
    assert (np.abs(numbers.mean(axis=0) - mean) < 5 * np.sqrt(np.divide(variance, count))).all()
    assert (np.abs(numbers.var(axis=0) / variance - 1) < 5 * math.sqrt(2 / count)).all()


def assert_uncorrelated(a, b):
    """Assert that the numbers of a and b, as many in both and each independent of the others, do not go together."""
    assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 5 / math.sqrt(np.size(a))
