"""The flow: its gradient, its loss by loops, Heun's order, a density known exactly, a ring that no Gaussian fits."""

import functools
import math

import numpy as np
import pytest
from chance import assert_like_draws
from conftest import make_forgetful
from test_priors import integral

from vae_np.backend import to_cpu, to_device
from vae_np.gradcheck import numerical_gradient
from vae_np.run.gradient_table import check_velocity
from vae_np.study import flow
from vae_np.study.flow import RIGHT_ANGLE, FlowPrior, Velocity, heun, probes_for
from vae_np.study.priors import GaussianPrior


def random_velocity(latent_dim, rng):
    """A field as no training has made it: one that has just been made is 0 everywhere."""
    velocity = Velocity(latent_dim, rng, width=8, dtype="float64")
    velocity.values[...] += to_device(0.3 * rng.standard_normal(velocity.values.size))
    return velocity


def ring(count, seed):
    """Codes on a ring of radius 2 around (1, -1), a little off it, and posteriors that are nearly points."""
    rng = np.random.default_rng(seed)
    turn, radius = 2 * math.pi * rng.random(count), 2 + 0.2 * rng.standard_normal(count)
    mu = np.stack([1 + radius * np.cos(turn), radius * np.sin(turn) - 1], axis=1).astype(np.float32)
    return mu, np.full_like(mu, -8.0)


def fit(mu, log_var, steps):
    """A flow of a smaller network than usual, whose weights are left to grow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "Velocity", functools.partial(Velocity, width=256))
        return FlowPrior.fit(mu, log_var, np.random.default_rng(0), steps, 100, learning_rate=5e-3, decay=0)


@pytest.fixture(scope="module")
def fitted():
    return fit(*ring(2000, 1), steps=1600)


class Known(Velocity):
    """The velocity of arcs to codes of N(0, C), which is linear.

    z_a and its velocity u are normal then, so that E[u | z_a] = covariance(u, z_a) covariance(z_a)^-1 z_a.
    """

    def __init__(self, covariance):
        self.covariance, self.latent_dim = covariance, len(covariance)

    def forward(self, z, angle):
        one, cos, sin = np.eye(self.latent_dim), math.cos(angle), math.sin(angle)
        cross = cos * sin * (self.covariance - one)
        self.matrix = to_device((cross @ np.linalg.inv(cos**2 * one + sin**2 * self.covariance)).astype(np.float32))
        return z @ self.matrix.T

    def backward(self, dv):
        return dv @ self.matrix


def known_prior(covariance):
    count = len(covariance)
    prior = FlowPrior(np.zeros(FlowPrior.shapes(count)["values"][0], np.float32), np.zeros(count), np.eye(count))
    prior.velocity = Known(covariance)
    return prior


def test_the_gradient_is_that_of_the_loss_and_a_table_that_checks_it_sees_an_error(rng, monkeypatch):
    assert [result.part for result in check_velocity(rng)] == ["parameters", "input"]
    assert all(result.passed for result in check_velocity(rng))
    monkeypatch.setattr(Velocity, "backward", lambda self, dv: self.network.backward(2 * dv)[:, :3])
    assert not any(result.passed for result in check_velocity(rng))


def test_the_loss_equals_a_loop(rng):
    velocity, (z0, z1) = random_velocity(3, rng), rng.standard_normal((2, 6, 3))
    angle = RIGHT_ANGLE * rng.random((6, 1))
    by_hand = 0.0
    for a, start, end in zip(angle[:, 0].tolist(), z0, z1, strict=True):
        z = [math.cos(a) * s + math.sin(a) * e for s, e in zip(start, end, strict=True)]
        v = to_cpu(velocity.forward(to_device(np.array([z])), a))[0]
        by_hand += sum((w - (math.cos(a) * e - math.sin(a) * s)) ** 2 for w, s, e in zip(v, start, end, strict=True))
    loss = velocity.loss_and_gradient(*map(to_device, (z0, z1, angle)))
    assert float(loss) == pytest.approx(by_hand / 6, rel=1e-10)
    early, late = (to_cpu(velocity.forward(to_device(z0), a)) for a in (0.1, 1.4))
    assert np.abs(early - late).min() > 1e-4, "v depends on the angle"


def test_before_it_has_learned_anything_it_is_the_gaussian(rng):
    for count in (2, 11):
        velocity, z = Velocity(count, rng), rng.standard_normal((5, count), dtype=np.float32)
        assert not to_cpu(velocity.forward(to_device(z), 0.3)).any()
        mean, covariance = rng.standard_normal(count), np.cov(rng.standard_normal((count, 50)))
        gaussian, prior = GaussianPrior(mean, covariance), FlowPrior(to_cpu(velocity.values), mean, covariance)
        np.testing.assert_allclose(prior.log_density(z), gaussian.log_density(z), rtol=1e-5)
        np.testing.assert_allclose(prior.sample(9, np.random.default_rng(1), 0.5),
                                   gaussian.sample(9, np.random.default_rng(1), 0.5), atol=1e-5)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 2.0), (1.5, -0.5)])
def test_half_the_step_is_a_quarter_of_the_error(start, stop):
    y = np.array([[1.0, -2.0]])  # dy/dx = y cos(x) leads from y to y exp(sin(stop) - sin(start))
    exact = y * math.exp(math.sin(stop) - math.sin(start))
    errors = [np.abs(heun(lambda y, x: y * math.cos(x), y, start, stop, steps) - exact).max() for steps in (20, 40, 80)]
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([4, 4], rel=0.1)
    np.testing.assert_array_equal(y, [[1.0, -2.0]])


def test_the_divergence_is_the_trace_of_finite_differences_and_that_of_random_signs_is_so_on_average(rng):
    for count in (3, 9):
        velocity, z = random_velocity(count, rng), to_device(rng.standard_normal((1, count)))
        trace = sum(numerical_gradient(lambda i=i, f=velocity, z=z: f.forward(z, 0.4)[0, i], z)[0, i]
                    for i in range(count))
        many = to_device(np.repeat(to_cpu(z), 20_000, axis=0))
        v, divergence = velocity.divergence(many, 0.4, probes_for(many.shape, rng))
        np.testing.assert_allclose(to_cpu(v[:1]), to_cpu(velocity.forward(z, 0.4)), rtol=1e-10)
        estimates = to_cpu(divergence)
        assert estimates.shape == (20_000, 1)
        if count <= flow.FEW:
            np.testing.assert_allclose(estimates, trace, rtol=1e-7)
        else:
            assert estimates.mean() == pytest.approx(trace, abs=5 * estimates.std() / math.sqrt(20_000))
            assert estimates.std() > 0.01, "an estimate, not the trace itself"


@pytest.mark.parametrize("count", [2, 12])
def test_the_density_and_the_samples_of_a_gaussian_whose_velocity_is_known(count):
    rng = np.random.default_rng(3)
    turned, _ = np.linalg.qr(rng.standard_normal((count, count)))
    covariance = turned * np.linspace(0.3, 3, count) @ turned.T
    prior, gaussian = known_prior(covariance), GaussianPrior(np.zeros(count), covariance)
    z = gaussian.sample(400, rng)
    errors = prior.log_density(z) - gaussian.log_density(z)
    if count <= flow.FEW:
        assert np.abs(errors).max() < 5e-3  # Heun's, for a code far out
    else:  # each density is an estimate, and their mean is right
        assert abs(errors.mean()) < 5 * errors.std() / 20
        assert 0.01 < errors.std() < 0.5
    assert_like_draws(gaussian.whiten(prior.sample(4000, rng)), 0, 1)


def test_samples_lie_on_the_ring_and_new_codes_are_likelier_than_under_the_gaussian(fitted):
    z, gaussian = fitted.sample(2000, np.random.default_rng(0)), fitted.gaussian
    assert z.dtype == np.float32

    def off(z):  # the ring, on average
        return np.abs(np.linalg.norm(z - np.array([1, -1]), axis=1) - 2).mean()

    assert off(ring(2000, 2)[0]) == pytest.approx(0.16, abs=0.02)
    assert off(gaussian.sample(2000, np.random.default_rng(0))) > 0.7
    assert off(z) < 0.4
    assert_like_draws(z[:200], [1, -1], 2.2)  # all around
    new = ring(300, 3)[0]
    assert fitted.log_density(new).mean() > gaussian.log_density(new).mean() + 0.5


def test_the_density_integrates_to_1(fitted):
    assert integral(fitted, side=4.2, points=42) == pytest.approx(1, abs=0.03)  # the ring is several points wide


def test_it_learns_from_codes_of_the_posteriors_and_not_from_their_means():
    mu = np.zeros((1000, 2), np.float32)
    assert_like_draws(fit(mu, mu, steps=100).sample(500, np.random.default_rng(1)), 0, 1)


def test_few_codes_are_not_learned_by_heart():
    rng = np.random.default_rng(1)
    mu, new = rng.standard_normal((2, 600, 30), dtype=np.float32)
    prior, other = (FlowPrior.fit(mu, 0 * mu - 8, np.random.default_rng(0), decay=decay) for decay in (1, 0))
    assert prior.log_density(new).mean() > prior.gaussian.log_density(new).mean() - 0.8
    assert np.linalg.norm(prior.arrays["values"]) < np.linalg.norm(other.arrays["values"])


def test_threads_may_draw_from_one_prior(rng):
    mu = rng.standard_normal((20, 12), dtype=np.float32)
    prior = FlowPrior.fit(mu, 0 * mu, rng, steps=3)
    expected = prior.sample(4, np.random.default_rng(0))
    make_forgetful(prior.velocity.network.layers)
    np.testing.assert_array_equal(prior.sample(4, np.random.default_rng(0)), expected)


def test_a_lower_temperature_keeps_codes_nearer_to_one_place(fitted):
    cold = fitted.sample(50, np.random.default_rng(0), temperature=0.0)
    np.testing.assert_allclose(cold, np.tile(cold[0], (50, 1)), rtol=1e-4)
    cool, warm = (fitted.sample(500, np.random.default_rng(0), temperature=t).std(axis=0) for t in (0.3, 1.0))
    assert (cool < 0.8 * warm).all()


def test_the_same_seeds_give_the_same_bits_and_nothing_is_written_to_what_came_in(rng):
    mu, log_var = (rng.standard_normal((70, 11), dtype=np.float32) - shift for shift in (0, 2))
    given = mu.copy(), log_var.copy()
    first, again, other = (FlowPrior.fit(mu, log_var, np.random.default_rng(seed), steps=6, batch_size=32)
                           for seed in (3, 3, 4))
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert not np.array_equal(first.arrays["values"], other.arrays["values"])
    assert {name: (array.shape, str(array.dtype)) for name, array in first.arrays.items()} == FlowPrior.shapes(11)
    values, z = first.arrays["values"].copy(), mu[:9].copy()
    density = first.log_density(z)
    assert density.dtype == np.float64
    np.testing.assert_array_equal(first.log_density(z), density)
    samples = first.sample(9, np.random.default_rng(1))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(first.sample(9, np.random.default_rng(1)), samples)
    assert not np.array_equal(first.sample(9, np.random.default_rng(2)), samples)
    for before, after in zip((*given, values, given[0][:9]), (mu, log_var, first.arrays["values"], z), strict=True):
        np.testing.assert_array_equal(before, after)
