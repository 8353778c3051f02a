"""Adam against steps computed by hand, clipping, and the schedules."""

import math
from fractions import Fraction

import numpy as np

from vae_np import optim
from vae_np.backend import to_cpu, to_device
from vae_np.optim import Adam, beta_at, clip_gradient, cyclical_beta_at, learning_rate_at


def test_adam_by_hand_in_exact_fractions():
    # Gradients 3 and -1: m = 0.3, v = 0.009, then m = 0.17, v = 0.009991. Only the square root is not a fraction.
    b1, b2 = Fraction(9, 10), Fraction(999, 1000)
    m = v = Fraction(0)
    value = 1.0
    values, grads = to_device(np.array([1.0])), to_device(np.array([0.0]))
    adam = Adam(values, grads)
    for step, gradient in enumerate((Fraction(3), Fraction(-1)), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        value -= 0.1 * float(m / (1 - b1**step)) / (math.sqrt(v / (1 - b2**step)) + 1e-8)
        grads[...] = float(gradient)
        adam.update(0.1)
        assert math.isclose(float(values[0]), value, rel_tol=1e-12)
    assert (m, v) == (Fraction(17, 100), Fraction(9991, 1_000_000))
    assert math.isclose(float(adam.m[0]), 0.17, rel_tol=1e-12)
    assert math.isclose(float(adam.v[0]), 0.009991, rel_tol=1e-12)


def root(fraction):
    """The square root of a fraction that has one."""
    result = Fraction(math.isqrt(fraction.numerator), math.isqrt(fraction.denominator))
    assert result**2 == fraction
    return result


def test_adam_by_hand_in_exact_fractions_down_to_the_root():
    # The corrected v is 25, 9, 9: all roots are rational. Epsilon is large, so that its place in the formula shows.
    b1, b2, epsilon, rate = Fraction(1, 2), Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)
    m, v, value = Fraction(0), Fraction(0), Fraction(1)
    values, grads = to_device(np.array([1.0, -1.0])), to_device(np.zeros(2))
    adam = Adam(values, grads, beta1=0.5, beta2=0.5, epsilon=0.25)
    for step, gradient in enumerate((5, 1, 3), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        value -= rate * (m / (1 - b1**step)) / (root(v / (1 - b2**step)) + epsilon)
        grads[...] = to_device(np.array([gradient, -gradient], float))
        adam.update(float(rate))
        np.testing.assert_allclose(to_cpu(values), [float(value), -float(value)], rtol=1e-14)
    assert 8 * (1 - value) == Fraction(20, 21) + Fraction(28, 39) + Fraction(76, 91)
    assert (m, v) == (Fraction(19, 8), Fraction(63, 8))
    # Halves of whole numbers are exact in binary, too.
    np.testing.assert_array_equal(to_cpu(adam.m), [19 / 8, -19 / 8])
    np.testing.assert_array_equal(to_cpu(adam.v), [63 / 8, 63 / 8])


def test_the_first_step_has_the_length_of_the_learning_rate():
    # Without the bias correction it would be sqrt(1000) / 10 times as long.
    values = to_device(np.zeros(3))
    Adam(values, to_device(np.array([1e-3, -5.0, 700.0]))).update(0.01)
    np.testing.assert_allclose(to_cpu(values), [-0.01, 0.01, -0.01], rtol=1e-4)


def test_adam_does_not_depend_on_its_blocks(rng, monkeypatch):
    start, gradients = rng.standard_normal(1000), rng.standard_normal((5, 1000))
    results = []
    for block in (1 << 40, 64):
        monkeypatch.setattr(optim, "BLOCK", block)
        values, grads = to_device(start.copy()), to_device(np.zeros(1000))
        adam = Adam(values, grads)
        for gradient in gradients:
            grads[...] = to_device(gradient)
            adam.update(1e-2)
        results.append(to_cpu(values))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - start).min() > 0


def test_adam_stays_float32_and_leaves_the_gradient_alone(rng):
    values = to_device(rng.standard_normal(10, dtype=np.float32))
    grads = to_device(rng.standard_normal(10, dtype=np.float32))
    before = to_cpu(grads).copy()
    adam = Adam(values, grads)
    adam.update(np.float64(0.1).item())
    assert {a.dtype for a in (adam.values, adam.m, adam.v)} == {np.dtype("float32")}
    np.testing.assert_array_equal(to_cpu(grads), before)
    assert repr(adam) == "Adam(beta1=0.9, beta2=0.999, epsilon=1e-08, step=1)"


def test_clipping_shortens_and_keeps_the_direction():
    grads = to_device(np.array([3.0, -4.0]))
    assert clip_gradient(grads, 10) == 5
    np.testing.assert_array_equal(to_cpu(grads), [3, -4])
    assert clip_gradient(grads, 1) == 5
    np.testing.assert_allclose(to_cpu(grads), [0.6, -0.8])


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
