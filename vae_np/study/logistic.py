"""Logistic regression by Newton's method, and the area under the ROC curve that judges it.

It asks what a code says about a yes-or-no question, and answers on the host: plain NumPy, in float64.
"""

import numpy as np

from vae_np.errors import InputError


def sigmoid(scores):
    """1 / (1 + exp(-scores)), written with tanh, which does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * scores))


def loss_and_gradient(parameters, x, y, l2):
    """Mean cross-entropy with an L2 penalty, in nats, and its gradient: x (N, D), y (N,) of 0 and 1 -> float, (D + 1,).

    parameters (D + 1,) are the weight w (D,) and the bias b. With scores s = x w + b and p = sigmoid(s),

        loss      1/N sum_n [log(1 + exp(s_n)) - y_n s_n] + l2 / 2 |w|^2
        dw        x^T (p - y) / N + l2 w           db = sum_n (p_n - y_n) / N

    The bracket is -log p_n where y_n = 1 and -log(1 - p_n) where y_n = 0. Its derivative with respect to s_n is
    p_n - y_n. The bias is not penalised: how frequent the answer is should cost nothing.
    """
    weight, bias = parameters[:-1], parameters[-1]
    scores = x @ weight + bias
    loss = np.mean(np.logaddexp(0, scores) - y * scores) + 0.5 * l2 * weight @ weight
    residual = (sigmoid(scores) - y) / len(x)
    return float(loss), np.append(x.T @ residual + l2 * weight, residual.sum())


def hessian(parameters, x, l2):
    """The second derivatives of the loss: (D + 1, D + 1), symmetric, the bias last.

    dp/ds = p (1 - p), so with A, which is x with a column of ones,  H = A^T diag(p (1 - p)) A / N + l2 diag(1 ... 1 0).
    It does not depend on y.
    """
    p = sigmoid(x @ parameters[:-1] + parameters[-1])
    with_ones = np.column_stack([x, np.ones(len(x))])
    curvature = with_ones.T @ (with_ones * (p * (1 - p) / len(x))[:, None])
    return curvature + l2 * np.diag(np.append(np.ones(x.shape[1]), 0))


def newton(x, y, l2, max_steps=100):
    """The parameters (D + 1,) that minimise the loss, by Newton's method: repeat parameters -= H^-1 gradient.

    Each step goes to the minimum of the parabola that fits the loss where it stands. Every step is a least-squares
    problem weighted by p (1 - p), hence the method's other name, iteratively reweighted least squares. The loss is
    convex, but a whole step may overshoot where it is far from a parabola, and is then halved until the loss falls.
    gradient^T H^-1 gradient / 2 is what the parabola says can still be gained: the loop ends at 1e-12 nats.
    """
    parameters = np.zeros(x.shape[1] + 1)
    for _ in range(max_steps):
        loss, gradient = loss_and_gradient(parameters, x, y, l2)
        step = np.linalg.solve(hessian(parameters, x, l2), gradient)
        if gradient @ step < 2e-12:
            break
        while loss_and_gradient(parameters - step, x, y, l2)[0] > loss:
            step = step / 2
        parameters = parameters - step
    return parameters


class LogisticRegression:
    """p(y = 1 | x) = sigmoid(x weight + bias): weight (D,), bias, both float64, for x as it is given."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    @classmethod
    def fit(cls, x, y, l2=1e-3):
        """Fit to x (N, D) and bools y (N,), with the penalty l2 / 2 |w|^2 on the weight of standardised columns.

        A column is standardised by its mean and deviation, so that the penalty treats all alike, whatever their unit;
        the weight is then turned back into one for x itself. Without any penalty, classes that can be separated would
        have no best weight: the longer, the better. Raises InputError for arrays that do not fit, for values that are
        not finite, for labels that are all the same, and for l2 that is not above 0.
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
        weight = parameters[:-1] / deviation
        return cls(weight, parameters[-1] - mean @ weight)

    def scores(self, x):
        """The log odds log p / (1 - p) of y = 1: x (N, D) -> (N,). Above 0, the answer is yes."""
        return x @ self.weight + self.bias


def area_under_curve(scores, y):
    """The area under the ROC curve: scores (N,), bools y (N,) -> 0 to 1, where 0.5 is chance.

    It is the probability that a random positive scores higher than a random negative, ties counted by half. With
    ranks 1 to N, equal scores sharing the mean of theirs, the positives' ranks count, for every positive, the negatives
    below it and the positives up to it (Mann and Whitney 1947), and so for P positives

        area = (sum of the positives' ranks - P (P + 1) / 2) / (P (N - P))

    Unlike accuracy, it needs no threshold and does not rise where one answer is rare. Raises InputError for labels that
    are all the same.
    """
    positives = int(np.count_nonzero(y))
    negatives = len(y) - positives
    if not positives or not negatives:
        raise InputError(f"the area under the curve needs both answers, and all {len(y):,} labels are the same")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[np.asarray(y, bool)].sum() - positives * (positives + 1) / 2) / (positives * negatives))
