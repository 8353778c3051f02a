"""Adam by the textbook, clipping, and the schedules."""

import math

import numpy as np
import pytest

from vae_np.backend import to_cpu, to_device
from vae_np.optim import Adam, beta_at, clip_gradient, cyclical_beta_at, learning_rate_at

every_way = pytest.mark.usefixtures("way")


@every_way
@pytest.mark.parametrize("constants", [{}, {"beta1": 0.5, "beta2": 0.75, "epsilon": 0.25}])
def test_adam_by_the_textbook(constants):
    # Numbers of Python, in the order of the paper. Epsilon is large in one case, so that its place shows.
    b1, b2, epsilon = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, **constants}.values()
    m = v = 0.0
    value, rates = 1.0, (0.1, 0.1, 0.05)
    values, grads = to_device(np.array([1.0, -1.0])), to_device(np.zeros(2))
    adam = Adam(values, grads, **constants)
    for t, (gradient, rate) in enumerate(zip((3.0, -1.0, 0.5), rates, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        value -= rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + epsilon)
        grads[...] = to_device(np.array([gradient, -gradient]))
        adam.update(rate)
        np.testing.assert_allclose(to_cpu(values), [value, -value], rtol=1e-12)
        np.testing.assert_allclose(to_cpu(adam.m), [m, -m], rtol=1e-12)
        np.testing.assert_allclose(to_cpu(adam.v), [v, v], rtol=1e-12)


@every_way
def test_adam_stays_float32_and_leaves_the_gradient_alone(rng):
    values, grads = (to_device(rng.standard_normal(10, dtype=np.float32)) for _ in range(2))
    before = to_cpu(grads).copy()
    adam = Adam(values, grads)
    adam.update(np.float64(0.1).item())
    assert {a.dtype for a in (adam.values, adam.m, adam.v)} == {np.dtype("float32")}
    np.testing.assert_array_equal(to_cpu(grads), before)


def test_clipping_shortens_and_keeps_the_direction():
    grads = to_device(np.array([3.0, -4.0]))
    assert clip_gradient(grads, 10) == 5
    np.testing.assert_array_equal(to_cpu(grads), [3, -4])
    assert clip_gradient(grads, 1) == 5
    np.testing.assert_allclose(to_cpu(grads), [0.6, -0.8])
    grads[...] = 0
    assert clip_gradient(grads, 1) == 0  # a RuntimeWarning would be an error here
    np.testing.assert_array_equal(to_cpu(grads), 0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30])  # 1e60 is beyond float32
def test_the_norm_of_a_gradient_that_is_not_finite_says_so(broken):
    with np.errstate(all="ignore"):  # as in training, which looks at the norm
        assert not math.isfinite(float(clip_gradient(to_device(np.array([1, broken], np.float32)), 1.0)))


def test_learning_rate_schedule():
    rates = [learning_rate_at(step, 110, 2.0, warmup_steps=10, final=0.1) for step in range(110)]
    np.testing.assert_allclose(rates[:10], np.linspace(0.2, 2, 10))
    assert rates[10] == 2
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(learning_rate_at(50, 101, 2.0, final=0.1), 2 * (0.1 + 0.9 * 0.5))  # halfway down the cosine
    assert math.isclose(rates[-1], 0.2)
    assert math.isclose(learning_rate_at(500, 110, 2.0, final=0.1), 0.2)  # past the end it stays
    assert learning_rate_at(4, 50, 2.0, warmup_steps=1000) == 2.0  # a short run does not spend itself warming up
    assert {learning_rate_at(step, 100, 2.0, final=1.0) for step in range(100)} == {2.0}


def test_beta_schedule():
    assert [beta_at(step, 4, warmup_steps=4) for step in range(6)] == [0, 1, 2, 3, 4, 4]
    assert beta_at(0, 0.5) == 0.5


def test_beta_in_cycles():
    assert [cyclical_beta_at(step, 16, 4, 2) for step in range(16)] == 2 * [0, 1, 2, 3, 4, 4, 4, 4]
    betas = [cyclical_beta_at(step, 10, 1, 3) for step in range(10)]  # three cycles in ten steps
    assert [step for step in range(10) if betas[step] < betas[step - 1]] == [0, 4, 7]
    assert betas[0] == 0
    assert max(betas) == 1
    # 10 is where the fourth of nine cycles starts, whatever the rounding of 30 / 9.
    assert cyclical_beta_at(10, 30, 1, 9) == 0
