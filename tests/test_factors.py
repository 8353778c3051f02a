"""What codes say about factors: R^2 of a known map, information of codes that are factors, and factors on disk."""

import math

import numpy as np
import pytest
from conftest import write_dataset

from data_tools import toy_faces
from vae_np.disk.dataset import Dataset
from vae_np.errors import DatasetError
from vae_np.study.factors import (
    VISIBLE_WITH,
    discretise,
    entropy,
    information,
    linear_r_squared,
    load_factors,
    mutual_information,
    mutual_information_gap,
)

HALF = slice(0, 3000), slice(3000, 6000)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "toy"
    toy_faces.write_dataset(folder, count=40, size=8, seed=1, workers=1)
    return Dataset(folder)


def r_squared(mu, factors, **kwargs):
    fit, test = HALF
    return linear_r_squared(mu[fit], factors[fit], mu[test], factors[test], **kwargs)


# --- linear prediction -----------------------------------------------------------------------------------------------


def test_r_squared_of_a_known_map(rng):
    mu = rng.standard_normal((6000, 5))
    signal = mu @ rng.standard_normal((5, 2)) + [3, -50]
    noise = rng.standard_normal(6000) * signal[:, 1].std() * math.sqrt(1 / 3)  # of which R^2 = 1 / (1 + 1/3)
    factors = np.stack([signal[:, 0], signal[:, 1] + noise, rng.standard_normal(6000)], axis=1)
    exact, noisy, nothing = r_squared(mu, factors)
    assert 0.999 < exact <= 1
    assert noisy == pytest.approx(0.75, abs=0.02)
    assert nothing == pytest.approx(0, abs=0.01)


def test_r_squared_is_that_of_least_squares_on_more_rows(rng):
    # Ridge regression is least squares with a row sqrt(M penalty) e_j -> 0 for each latent, on centred data.
    mu = (rng.standard_normal((90, 4)) @ rng.standard_normal((4, 4)) + 2).astype(np.float32)
    v = mu[:, 0] ** 2 + rng.standard_normal(90) + 7
    fit, test = slice(0, 50), slice(50, 90)
    centre = mu[fit].mean(axis=0, dtype=np.float64)
    rows = np.concatenate([mu[fit] - centre, math.sqrt(50 * 0.3) * np.eye(4)])
    weights = np.linalg.lstsq(rows, np.concatenate([v[fit] - v[fit].mean(), np.zeros(4)]), rcond=None)[0]
    prediction = v[fit].mean() + (mu[test] - centre) @ weights
    expected = 1 - ((v[test] - prediction) ** 2).sum() / ((v[test] - v[test].mean()) ** 2).sum()
    result = linear_r_squared(mu[fit], v[fit, None], mu[test], v[test, None], penalty=0.3)
    assert result == pytest.approx([expected], rel=1e-6)


def test_r_squared_is_judged_on_other_faces_than_fitted(rng):
    mu, v = rng.standard_normal((60, 29)), rng.standard_normal((60, 1))
    fitted = linear_r_squared(mu[:30], v[:30], mu[:30], v[:30], penalty=1e-9)
    assert fitted > 0.99, "29 latents and a constant meet 30 faces exactly"
    assert linear_r_squared(mu[:30], v[:30], mu[30:], v[30:], penalty=1e-9) < 0


def test_a_collapsed_latent_predicts_nothing(rng):
    v = rng.standard_normal((6000, 1))
    assert r_squared(1e-3 * v, v) < 0.01, "a thousandth of the noise in z"
    assert r_squared(v, v) > 0.999


def test_r_squared_leaves_out_what_cannot_be_seen_and_what_is_constant(rng):
    mu = rng.standard_normal((6000, 2))
    sometimes = mu[:, 0].copy()
    sometimes[rng.random(6000) < 0.8] = np.nan
    constant, never = np.full(6000, 0.1), np.full(6000, np.nan)  # 0.1: of which the mean is not quite 0.1
    result = r_squared(mu, np.stack([sometimes, constant, never], axis=1))
    assert result[0] > 0.999
    assert np.isnan(result[1:]).all()


# --- information -----------------------------------------------------------------------------------------------------


def test_classes_are_equally_full_and_frequent_values_stay_together(rng):
    values = rng.standard_normal(1000)
    classes = discretise(values, bins=10)
    assert np.bincount(classes).tolist() == [100] * 10
    order = np.argsort(values)
    assert (np.diff(classes[order]) >= 0).all(), "larger values are in later classes"
    assert discretise(np.array([0.5, -1, 0.5, 7]), bins=3).tolist() == [1, 0, 1, 2]
    rare = np.where(rng.random(1000) < 0.85, 0, rng.uniform(0.5, 1, 1000))
    classes = discretise(rare, bins=10)
    assert set(classes[rare == 0]) == {0}
    assert (classes[rare > 0] > 0).all()


def test_entropy_of_known_frequencies():
    classes = np.repeat([3, 5, 9], [50, 25, 25])
    assert entropy(classes) == pytest.approx(1.5 * math.log(2) + 2 / 200)
    assert entropy(np.zeros(10, int)) == 0


def test_information_of_two_known_tables():
    # A table of frequencies: sum p(a, b) log [p(a, b) / (p(a) p(b))], by loops; the corrections are (1 + 1 - 3) / 2N.
    counts = np.array([[30, 10], [20, 40]])
    a, b = np.repeat([0, 0, 1, 1], counts.ravel()), np.repeat([0, 1, 0, 1], counts.ravel())
    p = counts / 100
    expected = sum(p[i, j] * math.log(p[i, j] / (p[i].sum() * p[:, j].sum())) for i in (0, 1) for j in (0, 1))
    assert mutual_information(a, b) == pytest.approx(expected - 1 / 200)
    assert mutual_information(b, a) == pytest.approx(expected - 1 / 200)
    a, b = np.array([0, 0, 1, 1]).repeat(100), np.array([0, 1, 0, 1]).repeat(100)
    assert mutual_information(a, b) == pytest.approx(-1 / 800)


def test_information_of_correlated_normal_numbers(rng):
    # -1/2 log(1 - rho^2) in closed form; classes lose some of it, and the fewer, the more.
    a, noise = rng.standard_normal((2, 50_000))
    b = 0.6 * a + 0.8 * noise
    exact = -0.5 * math.log(1 - 0.36)
    ten, fifty = (mutual_information(discretise(a, bins), discretise(b, bins)) for bins in (10, 50))
    assert 0.9 * exact < ten < 0.95 * exact
    assert 0.95 * exact < fifty < 1.02 * exact


def test_independent_numbers_share_nothing_on_average(rng):
    shared = [mutual_information(discretise(a), discretise(b)) for a, b in rng.standard_normal((200, 2, 1000))]
    assert abs(np.mean(shared)) < 3e-3, "uncorrected, it would be 81 / 2000 = 0.04"


def test_the_gap_is_1_for_latents_that_are_factors_and_0_after_a_rotation(rng):
    factors = rng.standard_normal((6000, 2))
    noise = rng.standard_normal((6000, 1))
    shares = information(np.concatenate([factors, noise], axis=1), factors)
    assert shares[:2] == pytest.approx(np.eye(2), abs=0.02)
    assert shares[2] == pytest.approx([0, 0], abs=0.02)
    assert mutual_information_gap(shares) == pytest.approx([1, 1], abs=0.03)
    turned = factors @ np.array([[1, -1], [1, 1]]) / math.sqrt(2)
    assert mutual_information_gap(information(turned, factors)) == pytest.approx([0, 0], abs=0.03)
    assert r_squared(turned, factors) == pytest.approx([1, 1], abs=1e-3), "though a line still finds them"


def test_the_gap_is_between_the_best_two():
    shares = np.array([[0.1, 0.5, 0.0], [0.7, 0.5, -0.01], [0.4, 0.2, -0.02], [0.0, 0.1, -0.01]])
    assert mutual_information_gap(shares) == pytest.approx([0.3, 0, 0.01])


def test_the_gap_of_a_single_latent_is_all_that_it_says():
    assert mutual_information_gap(np.array([[0.4, 0.0]])) == pytest.approx([0.4, 0])


def test_a_factor_of_two_values_has_an_entropy_of_its_own(rng):
    glasses = (rng.random((4000, 1)) < 0.3).astype(float)
    shares = information(glasses + 0.01 * rng.standard_normal((4000, 1)), glasses)
    assert shares == pytest.approx(np.array([[1]]), abs=0.01), "all of its 0.61 nats, not of the log 10 of ten classes"


def test_information_leaves_out_what_cannot_be_judged(rng):
    z = rng.standard_normal((2000, 2))
    order = rng.permutation(2000)
    seen, too_few = (np.where(order < count, z[:, 0], np.nan) for count in (700, 499))
    shares = information(z, np.stack([seen, too_few, np.full(2000, 0.1)], axis=1))
    assert shares[0, 0] == pytest.approx(1, abs=0.05)
    assert np.isnan(shares[:, 1:]).all()
    assert np.isnan(mutual_information_gap(shares)[1:]).all()


# --- factors on disk -------------------------------------------------------------------------------------------------


def test_factors_of_toy_faces(toy):
    names, values = load_factors(toy)
    assert values.shape == (40, len(names))
    faces = [toy_faces.face_factors(1, index) for index in range(40)]
    for column, name in enumerate(names):
        for value, face in zip(values[:, column], faces, strict=True):
            if name in VISIBLE_WITH and face[VISIBLE_WITH[name]] <= 0:
                assert np.isnan(value), name
            else:
                assert value == np.float32(face[name]), name
    assert set(VISIBLE_WITH) | set(VISIBLE_WITH.values()) <= set(names)


def test_a_dataset_without_factors_has_none(ramps):
    assert load_factors(ramps) is None


@pytest.mark.parametrize("damage", ["missing", "empty", "not an array", "too short"])
def test_factors_that_do_not_fit_are_refused_in_one_line(tmp_path, damage):
    dataset = write_dataset(tmp_path / "faces")
    dataset.info["factor_names"] = ["age", "smile"]
    path = tmp_path / "faces/factors.npy"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "not an array":
        path.write_bytes(b"PK\x03\x04 nothing of the kind")
    elif damage == "too short":
        np.save(path, np.zeros((39, 2), np.float32))
    with pytest.raises(DatasetError, match=r"factors\.npy.*prepare the dataset again") as caught:
        load_factors(dataset)
    assert "\n" not in str(caught.value)
