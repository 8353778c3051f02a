"""How well a code predicts the factors that a face was drawn from; toy faces come with theirs (data_tools)."""

import numpy as np

# A factor on the left is visible only where the one on the right is above 0.
VISIBLE_WITH = {
    "bangs_slant": "bangs", "beard_cover": "beard", "beard_length": "beard", "glasses_gold": "glasses",
    "glasses_round": "glasses", "glasses_tint": "glasses", "hair_dark": "hair_density", "hair_gray": "hair_density",
    "hair_red": "hair_density", "hat_hue": "hat", "lip_hue": "lipstick",
}  # fmt: skip


def load_factors(dataset):
    """The factors that the faces of a Dataset were drawn from: their names, and float64 (N, F); None if it has none.

    A factor that cannot be seen in a face, such as the colour of glasses that are not there, is NaN. Raises
    DatasetError for factors that do not fit the images.
    """
    names = dataset.info.get("factor_names")
    if names is None:
        return None
    values = dataset.open("factors", (len(dataset), len(names)), np.float32).astype(np.float64)
    amounts = dict(zip(names, values.T, strict=True))
    for name, other in VISIBLE_WITH.items():
        if name in amounts:
            amounts[name][amounts[other] <= 0] = np.nan
    return names, values


def linear_r_squared(train_mu, train_factors, mu, factors, penalty=0.01):
    """How much of the variance of each factor a linear map of mu explains, on faces that it was not fitted to: (F,).

        R^2 = 1 - sum (v - prediction)^2 / sum (v - mean of v)^2        over the faces of mu (N, Z), factors (N, F)

    1 is perfect, 0 is no better than a constant, and held-out faces can give less. The map is fitted to train_mu (M, Z)
    and train_factors (M, F) by ridge regression: with C the covariance of mu and c the covariance of mu with the
    factor, its weights are (C + penalty I)^-1 c. The penalty is a variance: a direction in which mu varies less is
    buried in the noise of z, and counts for nothing here, too. Faces where a factor is NaN are left out of its figure;
    a factor that is constant in either set gives NaN.
    """
    result = np.full(factors.shape[1], np.nan)
    for k, (train_v, v) in enumerate(zip(train_factors.T, factors.T, strict=True)):
        fit, test = np.isfinite(train_v), np.isfinite(v)
        if min(len(np.unique(train_v[fit])), len(np.unique(v[test]))) < 2:
            continue
        x, y = train_mu[fit].astype(np.float64), train_v[fit]
        centre, level = x.mean(axis=0), y.mean()
        covariance = (x - centre).T @ (x - centre) / len(x)
        weights = np.linalg.solve(covariance + penalty * np.eye(x.shape[1]), (x - centre).T @ (y - level) / len(x))
        error = v[test] - level - (mu[test] - centre) @ weights
        result[k] = 1 - (error @ error) / np.square(v[test] - v[test].mean()).sum()
    return result
