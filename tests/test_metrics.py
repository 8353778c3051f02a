"""PSNR, SSIM, the ELBO and its ledger, the importance-weighted bound, active units, the Frechet distance."""

import math

import numpy as np
import pytest

from tools.ledger import ledger, ledger_table, sigma_of_weight
from vae_np import VAE, vae
from vae_np.backend import to_cpu, to_device
from vae_np.errors import InputError
from vae_np.fast import workers
from vae_np.fast.workers import Workers
from vae_np.layers import Dense, Reshape, Sequential
from vae_np.losses import LIKELIHOODS, Bernoulli, Gaussian, kl_divergence, kl_per_dimension, sigmoid
from vae_np.study import metrics
from vae_np.study.metrics import active_units, evaluate, frechet_distance, importance_weighted_bound, psnr, smooth, ssim
from vae_np.train import to_float

likelihoods = pytest.mark.parametrize("make", [Bernoulli, lambda: Gaussian(0.2)], ids=["Bernoulli", "Gaussian"])


def test_psnr_by_hand():
    x = np.zeros((3, 4, 4, 3), np.float32)
    y = x + np.array([0.1, 0.01, 0], np.float32)[:, None, None, None]
    np.testing.assert_allclose(psnr(x, y), [20, 40, np.inf], rtol=1e-5)


def test_ssim_is_one_for_equal_images_less_for_others_and_the_luminance_term_for_constant_ones(rng):
    x = rng.random((2, 20, 16, 3))
    noisier = [ssim(x, np.clip(x + s * rng.standard_normal(x.shape), 0, 1)).mean() for s in (0, 0.02, 0.1, 0.5)]
    assert noisier == sorted(noisier, reverse=True) and noisier[0] == pytest.approx(1) and noisier[1] < 0.999
    x, y = np.full((1, 12, 12, 3), 0.5), np.full((1, 12, 12, 3), 0.7)
    np.testing.assert_allclose(ssim(x, y), (2 * 0.35 + 1e-4) / (0.25 + 0.49 + 1e-4))


def test_ssim_by_the_definition_in_loops(rng):
    x, y = rng.random((2, 13, 12))
    w = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w, values = np.outer(w, w) / w.sum() ** 2, []
    for i, j in np.ndindex(3, 2):
        a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
        ma, mb = (w * a).sum(), (w * b).sum()
        va, vb, cab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
        values.append((2 * ma * mb + 1e-4) * (2 * cab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    np.testing.assert_allclose(ssim(x[None, :, :, None], y[None, :, :, None]), np.mean(values), rtol=1e-9)
    w = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(smooth(x[None, :, :, None], w)[0, 4, 2, 0], (np.outer(w, w) * x[4:7, 2:5]).sum())


@likelihoods
@pytest.mark.parametrize("part", [3, 16])
def test_evaluate_equals_the_definition_whatever_the_parts(make, part, way, rng, monkeypatch):
    monkeypatch.setattr(workers, "SHARD_SIZE", part)
    monkeypatch.setattr(vae, "PART", part)
    model, images = VAE(16, (4, 6), 5), rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    model.workers = Workers(model, 2)  # at which a plain one does not look
    x, likelihood = to_float(images), make()
    eps = np.random.default_rng(4).standard_normal((10, 5), dtype=np.float32)
    logits, mu, log_var = model.forward(to_device(x), to_device(eps))
    got = evaluate(model, images, likelihood, seed=4)
    inside = np.clip(x.astype(np.float64), 1e-300, 1 - 1e-16)
    perfect = likelihood.log_likelihood(to_device(np.log(inside) - np.log1p(-inside)), to_device(inside))
    expected = {"recon": float(likelihood(logits, to_device(x))[0]), "kl": float(kl_divergence(mu, log_var)[0]),
                "squared_error": np.square(to_cpu(sigmoid(logits)) - x).sum() / 10, "floor": -to_cpu(perfect).mean(),
                "psnr": psnr(x, model.reconstruct(x)).mean()}
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert all(type(got[name]) is float for name in expected)
    np.testing.assert_allclose(got["kl_per_dimension"], to_cpu(kl_per_dimension(mu, log_var)), rtol=1e-4)
    assert got["active_units"] == active_units(to_cpu(mu)).sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihood_is_minus_recon_of_each_image_and_finite_for_extreme_logits(name, dtype, tolerance, rng):
    likelihood = LIKELIHOODS[name]()
    logits, x = map(to_device, ((3 * rng.standard_normal((4, 6, 5, 3))).astype(dtype),
                                rng.random((4, 6, 5, 3)).astype(dtype)))
    recon, _ = likelihood(logits, x)
    log_p = to_cpu(likelihood.log_likelihood(logits, x))
    assert float(recon) == pytest.approx(-log_p.sum() / 4, rel=tolerance)
    judge = likelihood if likelihood.sigma is None else Gaussian(float(likelihood.sigma))
    one_by_one, one_image = ([-float(judge(logits[n : n + 1], x[i : i + 1])[0]) for n, i in enumerate(which)]
                             for which in (range(4), [0] * 4))
    np.testing.assert_allclose(log_p, one_by_one, rtol=tolerance)
    # One image and many codes: the image is not repeated for it.
    np.testing.assert_allclose(to_cpu(likelihood.log_likelihood(logits, x[:1])), one_image, rtol=tolerance)
    logits = np.array([-1e4, -100, -40, 0, 40, 100, 1e4], dtype)
    for target in (0.0, 0.25, 1.0):
        x = to_device(np.full((1, 1, 1, 1), target, dtype))
        log_p = to_cpu(likelihood.log_likelihood(to_device(logits.reshape(7, 1, 1, 1)), x))
        assert np.isfinite(log_p).all()
        if name == "bernoulli":  # x log p + (1 - x) log(1 - p), where log p is about l or 0
            expected = target * np.minimum(logits, 0) - (1 - target) * np.maximum(logits, 0)
            expected[3] = -math.log(2)
            np.testing.assert_allclose(log_p, expected, rtol=1e-6, atol=1e-16)


class LinearGaussian:
    """x = z W + b + sigma * noise with z from N(0, I): a decoder for which log p(x) and the posterior are known.

    W (Z, D) has orthogonal rows, so that the posterior is N(mu, diag(var)): var = 1 / (1 + |w|^2 / sigma^2) for each
    row w, and mu = var * w (x - b) / sigma^2. It is its own likelihood.
    """

    def __init__(self, rng, shape=(2, 3, 3), latents=3, sigma=0.5):
        size = math.prod(shape)
        dense = Dense(latents, size, rng, dtype="float64")
        directions, _ = np.linalg.qr(rng.standard_normal((size, latents)))
        self.w, self.b, self.sigma = np.array([[2.0], [1.0], [0.3]]) * directions.T, rng.standard_normal(size), sigma
        dense.weight.value[...], dense.bias.value[...] = to_device(self.w), to_device(self.b)
        self.decoder = Sequential(dense, Reshape(*shape))
        noise = sigma * rng.standard_normal(size)
        self.x = (rng.standard_normal(latents) @ self.w + self.b + noise).reshape(shape)
        self.var = 1 / (1 + np.square(self.w).sum(axis=1) / sigma**2)
        self.mu = self.var * (self.w @ (self.x.ravel() - self.b)) / sigma**2

    def log_likelihood(self, mean, x):
        squares = ((x - mean) ** 2).sum(axis=(1, 2, 3))
        return -squares / (2 * self.sigma**2) - x[0].size * math.log(self.sigma * math.sqrt(2 * math.pi))

    def log_p(self):
        """log N(x; b, W^T W + sigma^2 I), which is the exact log p(x)."""
        centred = self.x.ravel() - self.b
        covariance = self.w.T @ self.w + self.sigma**2 * np.eye(len(centred))
        _, log_det = np.linalg.slogdet(2 * math.pi * covariance)
        return -0.5 * (log_det + centred @ np.linalg.solve(covariance, centred))


@pytest.mark.parametrize("k", [1, 4, 7, 200])
def test_where_q_is_the_posterior_every_weight_is_the_likelihood_of_the_image(k, rng, monkeypatch):
    monkeypatch.setattr(metrics, "PART", 4)
    linear, eps = LinearGaussian(rng), rng.standard_normal((k, 3))
    log_w = metrics.log_importance_weights(linear.decoder, linear, linear.x, linear.mu, np.log(linear.var), eps)
    np.testing.assert_allclose(log_w, np.full(k, linear.log_p()), rtol=0, atol=1e-10)


@likelihoods
def test_the_bound_equals_the_definition_whatever_the_threads_and_shards(make, rng, monkeypatch):
    model, likelihood, expected, got = VAE(16, (4, 6), 5), make(), [], set()
    images = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    for i, x in enumerate(to_float(images)):
        mu, log_var = (a[0].astype(np.float64) for a in model.encode(x[None]))
        weights = []
        for eps in np.random.default_rng([4, i]).standard_normal((9, 5), dtype=np.float32):
            z = mu + np.exp(log_var / 2) * eps
            recon, _ = likelihood(model.decoder.forward(to_device(z[None].astype(np.float32))), to_device(x[None]))
            log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum()
            log_q = -0.5 * ((z - mu) ** 2 / np.exp(log_var) + log_var + math.log(2 * math.pi)).sum()
            weights.append(-float(recon) + log_prior - log_q)
        expected.append(max(weights) + math.log(sum(math.exp(w - max(weights)) for w in weights) / 9))
    for threads, shard in [(1, 16), (2, 16), (3, 2), (2, 1)]:
        monkeypatch.setattr(workers, "SHARD_SIZE", shard)
        model.workers = Workers(model, threads)
        got.add(importance_weighted_bound(model, images, likelihood, 9, seed=4))
    assert len(got) == 1, "the same bits whatever the threads and shards"
    assert got.pop() == pytest.approx(np.mean(expected), rel=1e-6)
    assert importance_weighted_bound(model, images, likelihood, 9, seed=5) != pytest.approx(np.mean(expected))


def test_the_bound_of_a_very_sharp_likelihood_is_finite_and_no_codes_and_no_images_are_refused(rng):
    model, images = VAE(16, (4, 6), 5), rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    bound = importance_weighted_bound(model, images, Gaussian(0.01), 20)
    assert type(bound) is float and -1e8 < bound < -1e5
    for k in (0, -3):
        with pytest.raises(InputError, match=f"must be at least 1, not {k}"):
            importance_weighted_bound(model, images, Bernoulli(), k)
    for measure in (evaluate, lambda *args: importance_weighted_bound(*args, k=2)):
        with pytest.raises(InputError, match="there are no images"):
            measure(model, images[:0], Bernoulli())


def test_the_ledger_by_hand():
    terms, bit = {"recon": 700.0, "kl": 20.0, "squared_error": 7.68, "floor": 684.64}, 768 * 0.6931472
    rows = ledger(terms, Bernoulli(), 2.0, 16, 5)  # 768 pixel channels, a mean squared error of 0.01
    assert rows == pytest.approx({
        "recon": 700, "kl": 20, "floor": 684.64, "bits_recon": 700 / bit, "bits_kl": 20 / bit,
        "bits_floor": 684.64 / bit, "rmse": 0.1, "sigma": 0.5,  # 7.68 / (2 * 0.25) is 15.36, what the errors cost
        "weight_of_sum": 1, "weight_of_mean": 1 / 768, "weight_of_means": 5 / 768, "weight_of_mean_entropy": 2 / 768,
        "beta_norm": 2 * 5 / 768})  # fmt: skip
    assert ledger(terms, Gaussian(0.5), 2.0, 16, 5)["bits_recon"] == pytest.approx(rows["bits_recon"] + math.log2(255))
    assert sigma_of_weight(2 * 0.5**2 / 768, 16) == pytest.approx(0.5), "weight_of_mean of a sigma, at beta 1"
    table = ledger_table(terms, Bernoulli(), 2.0, 16, 5).splitlines()
    assert table[4].split() == ["negative", "ELBO", "720.0", f"{720 / bit:.4f}"]
    assert table[-2].split()[-1] == "0.002604" and table[-1].startswith("and 0.01302 is beta_norm")
    assert math.isnan(ledger({**terms, "floor": 700.0}, Bernoulli(), 2.0, 16, 5)["sigma"]), "no error to charge for"


def test_losses_of_the_weights_in_the_ledger_are_the_loss_times_a_constant(rng):
    """What the ledger claims about other conventions, by computing their losses of two models."""
    likelihood, beta, images, losses = Gaussian(0.2), 0.7, rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8), []
    for seed in (0, 1):
        terms = evaluate(VAE(16, (4, 6), 5, seed=seed), images, likelihood)
        rows, error, kl = ledger(terms, likelihood, beta, 16, 5), terms["squared_error"], terms["kl"]
        assert rows["sigma"] == pytest.approx(0.2, rel=1e-3) and "weight_of_mean_entropy" not in rows
        losses.append([terms["recon"] + beta * kl, error + rows["weight_of_sum"] * kl,
                       error / 768 + rows["weight_of_means"] * kl / 5])
    ours, sums, means = np.subtract(*losses)
    assert (sums, means) == pytest.approx((2 * 0.2**2 * ours, 2 * 0.2**2 / 768 * ours), rel=1e-2)


def test_active_units(rng):
    mu = rng.standard_normal((5000, 3)) * [1, 0.09, 0.11] + [0, 7, 0]
    np.testing.assert_array_equal(active_units(mu), [True, False, True])


def test_frechet_distance_of_numbers_and_of_vectors_with_the_same_axes(rng):
    a, b = 3 + 2 * rng.standard_normal((200, 1)), rng.standard_normal((50, 1)) - 1
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    # Vectors of just this mean and these deviations along axes that are turned.
    exact, _ = np.linalg.qr(np.column_stack([np.ones(100), rng.standard_normal((100, 4))]))
    exact, (turn, _) = 10 * exact[:, 1:], np.linalg.qr(rng.standard_normal((4, 4)))
    first, second, shift = np.array([3.0, 2, 1, 0]), np.array([1.0, 2, 4, 0.5]), np.array([1.0, -2, 0, 5])
    expected = (shift**2).sum() + ((first - second) ** 2).sum()
    assert frechet_distance(exact * first @ turn, (exact[:, ::-1] * second + shift) @ turn) == pytest.approx(expected)


def test_frechet_distance_is_that_of_the_best_pairs(rng):
    """A symmetric positive definite map is the best way from one Gaussian to another; other pairs are further apart."""
    a, root = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 5)), rng.standard_normal((5, 5))
    b = a @ (root @ root.T) + rng.standard_normal(5)
    distance = frechet_distance(a, b)
    assert distance == pytest.approx(np.square(a - b).sum(axis=1).mean(), rel=1e-9)
    assert distance < np.square(a - b[::-1]).sum(axis=1).mean() - 1
    # What is paired with its own mirror image is not paired well.
    assert frechet_distance(a, -b) < np.square(a + b).sum(axis=1).mean() - 1
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)


def test_frechet_distance_is_zero_for_equal_sets_and_falls_with_the_number_of_vectors(rng):
    vectors = rng.standard_normal((40, 30), dtype=np.float32)
    vectors.flags.writeable = False
    assert 0 <= frechet_distance(vectors, vectors[::-1]) < 1e-10
    assert 0 <= frechet_distance(vectors[:10], vectors[9::-1]) < 1e-5  # fewer than dimensions: a singular covariance
    by_count = [frechet_distance(*rng.standard_normal((2, count, 8))) for count in (40, 400, 4000)]
    assert by_count[0] > 5 * by_count[1] > 25 * by_count[2] > 0


@pytest.mark.parametrize(("a", "b"), [((0, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,)), ((4, 5, 3), (5, 3))])
def test_frechet_distance_of_what_does_not_fit_is_one_line(a, b):
    with pytest.raises(InputError, match=r"^expected vectors \(M, D\) and \(N, D\), one or more each, got shapes .*$"):
        frechet_distance(np.ones(a), np.ones(b))
    with pytest.raises(InputError, match="the vectors have values that are not finite"):
        frechet_distance(np.ones((5, 3)), np.full((5, 3), np.nan))
