"""What a code says about a yes-or-no question: logistic regression, and the area under the ROC curve that judges it."""

import math

import numpy as np

from vae_np.errors import InputError


def probability(scores):
    """losses.sigmoid, for NumPy arrays whatever the backend."""
    return 0.5 * (1 + np.tanh(0.5 * scores))


def loss_and_gradient(parameters, x, y, l2):
    """Mean cross-entropy with an L2 penalty, in nats, and its gradient: x (N, D), y (N,) of 0 and 1 -> float, (D + 1,).

    parameters (D + 1,) are the weight w (D,) and the bias b. With scores s = x w + b and p = sigmoid(s),

        loss      1/N sum_n [log(1 + exp(s_n)) - y_n s_n] + l2 / 2 |w|^2
        dw        x^T (p - y) / N + l2 w           db = sum_n (p_n - y_n) / N

    The bracket, -log p_n where y_n = 1 and -log(1 - p_n) where y_n = 0, has the derivative p_n - y_n with respect to
    s_n. The bias is not penalised: how frequent the answer is should cost nothing.
    """
    weight, bias = parameters[:-1], parameters[-1]
    scores = x @ weight + bias
    loss = np.mean(np.logaddexp(0, scores) - y * scores) + 0.5 * l2 * weight @ weight
    residual = (probability(scores) - y) / len(x)
    return float(loss), np.append(x.T @ residual + l2 * weight, residual.sum())


def hessian(parameters, x, l2):
    """The second derivatives of the loss: (D + 1, D + 1), symmetric, the bias last. They do not depend on y.

    dp/ds = p (1 - p), so with A, which is x with a column of ones,  H = A^T diag(p (1 - p)) A / N + l2 diag(1 ... 1 0).
    """
    p = probability(x @ parameters[:-1] + parameters[-1])
    with_ones = np.column_stack([x, np.ones(len(x))])
    curvature = with_ones.T @ (with_ones * (p * (1 - p) / len(x))[:, None])
    return curvature + l2 * np.diag(np.append(np.ones(x.shape[1]), 0))


def newton(x, y, l2, max_steps=100):
    """The parameters (D + 1,) that minimise the loss, by Newton's method: repeat parameters -= H^-1 gradient.

    Each step goes to the minimum of the parabola that fits the loss where it stands; one that overshoots, where the
    loss is far from a parabola, is halved until the loss falls. By the parabola, gradient^T H^-1 gradient / 2 can still
    be gained: the loop ends at 1e-12 nats. Also known as iteratively reweighted least squares.
    """
    parameters = np.zeros(x.shape[1] + 1)
    for _ in range(max_steps):
        loss, gradient = loss_and_gradient(parameters, x, y, l2)
        step = np.linalg.solve(hessian(parameters, x, l2), gradient)
        if gradient @ step < 2e-12:
            break
        while loss_and_gradient(parameters - step, x, y, l2)[0] > loss:
            step /= 2
        parameters -= step
    return parameters


class LogisticRegression:
    """p(y = 1 | x) = sigmoid(x weight + bias): weight (D,), bias, both float64, for x as it is given."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    @classmethod
    def fit(cls, x, y, l2=1e-3):
        """Fit to x (N, D) and bools y (N,), with the penalty l2 / 2 |w|^2 on the weight of standardised columns.

        Without a penalty, classes that can be separated would have no best weight: the longer, the better. Raises
        InputError for arrays that do not fit, and unless x is finite, y has both answers, and l2 is above 0.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, bool)
        if x.ndim != 2 or y.shape != (len(x),):
            raise InputError(f"expected x (N, D) and y (N,), got shapes {x.shape} and {y.shape}")
        if not np.isfinite(x).all():
            raise InputError("x has values that are not finite")
        if y.all() or not y.any():
            raise InputError(f"a classifier needs both answers to learn from, and all {len(y):,} labels are the same")
        if not l2 > 0:
            raise InputError(f"l2 must be above 0, not {l2}")
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        constant = x.min(axis=0) == x.max(axis=0)  # a constant column says nothing, and its weight stays 0
        mean[constant], deviation[constant] = x[0, constant], 1  # exactly, where a mean would be rounded
        parameters = newton((x - mean) / deviation, y, l2)
        weight = parameters[:-1] / deviation  # of x itself
        return cls(weight, parameters[-1] - mean @ weight)

    def scores(self, x):
        """The log odds log p / (1 - p) of y = 1: x (N, D) -> (N,). Above 0, the answer is yes."""
        return x @ self.weight + self.bias


def area_under_curve(scores, y):
    """The area under the ROC curve: scores (N,), bools y (N,) -> 0 to 1, where 0.5 is chance.

    It is the probability that a random positive scores higher than a random negative, ties counted by half. The rank of
    a positive counts the negatives below it and the positives up to it, so with P positives (Mann and Whitney 1947)

        area = (sum of the positives' ranks - P (P + 1) / 2) / (P (N - P))

    where equal scores share the mean of their ranks. Raises InputError for labels that are all the same.
    """
    y = np.asarray(y, bool)
    positives = y.sum()
    if positives in (0, len(y)):
        raise InputError(f"the area under the curve needs both answers, and all {len(y):,} labels are the same")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return (ranks[y].sum() - positives * (positives + 1) / 2) / (positives * (len(y) - positives))


def area_error(area, positives, negatives):
    """The standard error of an area under the ROC curve, from how many positives and negatives there were.

        error^2 = (A (1 - A) + (P - 1) (A / (2 - A) - A^2) + (N - 1) (2 A^2 / (1 + A) - A^2)) / (P N)

    A / (2 - A) is the probability that one negative scores lower than two positives, 2 A^2 / (1 + A) that one positive
    scores higher than two negatives, for scores that are distributed exponentially; others change it little (Hanley and
    McNeil 1982). It is exact for A = 1/2, where error^2 = (P + N + 1) / (12 P N), if the scores say nothing.
    """
    one_negative, one_positive = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    variance = area * (1 - area) + (positives - 1) * one_negative + (negatives - 1) * one_positive
    return math.sqrt(variance / (positives * negatives))
