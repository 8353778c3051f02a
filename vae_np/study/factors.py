"""What a code says about the factors that a face was drawn from: linear prediction, mutual information and its gap.

Toy faces come with their factors (data_tools/toy_faces.py). Everything here is statistics of codes that are on the host
already: plain NumPy, in float64.
"""

import numpy as np

from vae_np.errors import DatasetError

# A factor on the left is visible only where the one on the right is above 0.
VISIBLE_WITH = {
    "bangs_slant": "bangs", "beard_cover": "beard", "beard_length": "beard", "glasses_gold": "glasses",
    "glasses_round": "glasses", "glasses_tint": "glasses", "hair_dark": "hair_density", "hair_gray": "hair_density",
    "hair_red": "hair_density", "hat_hue": "hat", "lip_hue": "lipstick",
}  # fmt: skip
FACES_IN_A_CELL = 5  # of a table of frequencies, on average; with fewer, an estimate of information is mostly bias


def load_factors(dataset):
    """The factors that the faces of a data.Dataset were drawn from: their names, and float64 (N, F).

    A factor that cannot be seen in a face, such as the colour of glasses that are not there, is NaN. Returns None for
    a dataset without factors. Raises DatasetError for factors that do not fit the images.
    """
    path, names = dataset.folder / "factors.npy", dataset.info.get("factor_names")
    if names is None:
        return None
    try:
        values = np.lib.format.open_memmap(path, mode="r").astype(np.float64)
    except Exception as error:  # NumPy has many kinds of its own for a damaged file
        reason = " ".join(str(error).split())  # some have several lines
        raise DatasetError(f"{path} is missing or damaged ({reason}); prepare the dataset again") from None
    if values.shape != (len(dataset), len(names)):
        raise DatasetError(f"{path} has shape {values.shape} where dataset.json promises "
                           f"{(len(dataset), len(names))}; prepare the dataset again")
    amounts = dict(zip(names, values.T, strict=True))
    for column, name in enumerate(names):
        if name in VISIBLE_WITH:
            values[amounts[VISIBLE_WITH[name]] <= 0, column] = np.nan
    return names, values


def linear_r_squared(train_mu, train_factors, mu, factors, penalty=0.01):
    """How much of the variance of each factor a linear map of mu explains, on faces that it was not fitted to: (F,).

        R^2 = 1 - sum (v - prediction)^2 / sum (v - mean of v)^2        over the faces of mu (N, Z), factors (N, F)

    1 is perfect, 0 is no better than a constant, and held-out faces can give less. The map is fitted to train_mu (M, Z)
    and train_factors (M, F) by ridge regression, in closed form: with C the covariance of mu and c the covariance of mu
    with the factor, its weights are (C + penalty I)^-1 c. The penalty is a variance, as the threshold of active_units:
    a direction in which mu hardly varies is buried in the noise of z, and counts for nothing here, too. Faces where a
    factor is NaN are left out of its figure; a factor that is constant in either set gives NaN.
    """
    result = np.full(factors.shape[1], np.nan)
    for k, (train_v, v) in enumerate(zip(train_factors.T, factors.T, strict=True)):
        fit, test = np.isfinite(train_v), np.isfinite(v)
        if not (varies(train_v[fit]) and varies(v[test])):
            continue
        x, y = train_mu[fit].astype(np.float64), train_v[fit]
        centre, level = x.mean(axis=0), y.mean()
        covariance = (x - centre).T @ (x - centre) / len(x)
        weights = np.linalg.solve(covariance + penalty * np.eye(x.shape[1]), (x - centre).T @ (y - level) / len(x))
        error = v[test] - level - (mu[test] - centre) @ weights
        result[k] = 1 - (error @ error) / np.square(v[test] - v[test].mean()).sum()
    return result


def varies(values):
    """Whether there are two different values at least."""
    return len(values) > 1 and values.min() < values.max()


def discretise(values, bins=10):
    """Numbers (N,) -> their classes, integers (N,): a class for each value, or `bins` classes equally full.

    Where a value is so frequent that it would fill several classes, such as 0 for faces without a beard, it has one of
    its own at the lower end, and there are fewer classes.
    """
    distinct = np.unique(values)
    if len(distinct) <= bins:
        return np.searchsorted(distinct, values)
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins))
    return np.searchsorted(edges, values)


def entropy(classes):
    """Entropy of classes (N,) in nats: -sum p log p + (K - 1) / (2 N), with p their K frequencies that are not 0.

    The first term is too low on average, since frequencies are more uneven than probabilities; the second makes up for
    it to first order in 1/N (Miller 1955).
    """
    _, counts = np.unique(classes, return_counts=True)
    p = counts / counts.sum()
    return -(p * np.log(p)).sum() + (len(p) - 1) / (2 * len(classes))


def mutual_information(a, b):
    """What classes a (N,) say about classes b (N,), in nats: H(a) + H(b) - H(a, b).

    Without the corrections of `entropy`, independent a and b would seem to share (K_a - 1) (K_b - 1) / (2 N) nats, for
    10 classes each and 2,000 faces 0.02. What is left scatters around 0, so it may be below.
    """
    return entropy(a) + entropy(b) - entropy(a * (b.max() + 1) + b)


def information(z, factors, bins=10):
    """The share of each factor's entropy that each latent tells: z (N, Z), factors (N, F) -> (Z, F), from 0 to 1.

    I(z_j; v_k) / H(v_k) of classes made by `discretise`: the number of bins limits what can be told apart, so figures
    compare only within one. Give codes that were drawn from q(z | x), as Chen et al. (2018) do, and not mu, whose bins
    would magnify a dimension that says next to nothing. Faces where a factor is NaN are left out; a factor that is
    constant, or seen in fewer than 5 faces for each of bins^2 cells, gives NaN.
    """
    shares = np.full((z.shape[1], factors.shape[1]), np.nan)
    for k, v in enumerate(factors.T):
        seen = np.isfinite(v)
        if seen.sum() < FACES_IN_A_CELL * bins**2 or not varies(v[seen]):
            continue
        factor = discretise(v[seen], bins)
        told = [mutual_information(discretise(latent, bins), factor) for latent in z[seen].T]
        shares[:, k] = np.array(told) / entropy(factor)
    return shares


def mutual_information_gap(shares):
    """How far the latent that says most about a factor is ahead of the next one: `information` (Z, F) -> (F,).

    1 where a factor has a latent of its own, near 0 where several share it, as after a rotation, or where none says
    anything; of a single latent, all that it says. The mean over factors is MIG (Chen, Li, Grosse and Duvenaud 2018,
    section 4.1). It says nothing of how many factors one latent mixes, and where factors depend on each other, as the
    jaw on the sex, 1 is out of reach.
    """
    best = np.sort(shares, axis=0)
    return best[-1] - best[-2] if len(best) > 1 else best[-1]
