"""What codes say about factors: R^2 beside least squares, and factors on disk."""

import math

import numpy as np
import pytest
from conftest import write_dataset

from data_tools import toy_faces
from vae_np.disk.dataset import Dataset
from vae_np.errors import DatasetError
from vae_np.study.factors import VISIBLE_WITH, linear_r_squared, load_factors


def r_squared(mu, factors, fitted=3000, **kwargs):
    return linear_r_squared(mu[:fitted], factors[:fitted], mu[fitted:], factors[fitted:], **kwargs)


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
    rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    for codes in (mu, mu @ rotation):
        assert r_squared(codes, v[:, None], fitted=50, penalty=0.3) == pytest.approx([expected], rel=1e-6)


def test_r_squared_is_1_at_best_and_0_for_what_a_code_says_nothing_of(rng):
    mu = rng.standard_normal((6000, 2))
    sometimes = np.where(rng.random(6000) < 0.8, np.nan, mu[:, 0])  # a factor that cannot be seen in most faces
    constant, never = np.full(6000, 0.1), np.full(6000, np.nan)  # 0.1: of which the mean is not quite 0.1
    factors = np.stack([mu[:, 1] - 50, sometimes, rng.standard_normal(6000), constant, never], axis=1)
    assert r_squared(mu, factors) == pytest.approx([1, 1, 0, np.nan, np.nan], abs=0.01, nan_ok=True)
    collapsed = 1e-3 * mu  # a thousandth of the noise in z
    assert r_squared(collapsed, factors) == pytest.approx([0, 0, 0, np.nan, np.nan], abs=0.01, nan_ok=True)


def test_factors_of_toy_faces(tmp_path, ramps):
    toy_faces.write_dataset(tmp_path / "toy", count=40, size=8, seed=1, workers=1)
    names, values = load_factors(Dataset(tmp_path / "toy"))
    assert values.shape == (40, len(names))
    assert set(VISIBLE_WITH) | set(VISIBLE_WITH.values()) <= set(names)
    for index, row in enumerate(values):
        face = toy_faces.face_factors(1, index)
        hidden = [name in VISIBLE_WITH and face[VISIBLE_WITH[name]] <= 0 for name in names]
        np.testing.assert_array_equal(row, np.where(hidden, np.nan, np.float32([face[name] for name in names])))
    assert load_factors(ramps) is None


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 nothing of the kind", "too short"])
def test_factors_that_do_not_fit_are_refused_in_one_line(tmp_path, content):
    dataset, path = write_dataset(tmp_path / "faces"), tmp_path / "faces/factors.npy"
    dataset.info["factor_names"] = ["age", "smile"]
    if content == "too short":
        np.save(path, np.zeros((39, 2), np.float32))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"factors\.npy.*prepare the dataset again") as caught:
        load_factors(dataset)
    assert "\n" not in str(caught.value)
