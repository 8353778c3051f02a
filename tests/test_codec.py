"""Codes come back from their bytes exactly, cost what their frequencies say, and no damaged file becomes a face."""

import json
import math
import zlib

import numpy as np
import pytest

from vae_np import VAE
from vae_np.errors import CheckpointError, InputError
from vae_np.run import checkpoint
from vae_np.study.codec import HEADER, LARGEST, WIDEST, Codec

Z = 6
DEVIATIONS = np.array([0.05, 0.1, 0.3, 0.7, 1.0, 1.0])  # of the posterior; the last two dimensions tell nothing


def posteriors(rng, count):
    """mu and log_var (count, Z) as an encoder gives them that fills the prior."""
    mu = rng.standard_normal((count, Z)) * np.sqrt(1 - DEVIATIONS**2)
    log_var = 2 * np.log(DEVIATIONS) + 0.1 * rng.standard_normal((count, Z))
    return mu.astype(np.float32), log_var.astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return VAE(image_size=16, channels=[4], latent_dim=Z, seed=1)


@pytest.fixture(scope="module")
def codec(model):
    return Codec.fit(model, *posteriors(np.random.default_rng(0), 500), step=2)


@pytest.mark.parametrize("step", [0.01, 0.5, 2, 30])
def test_codes_come_back_and_are_near(model, rng, step):
    mu, log_var = posteriors(rng, 300)
    codec = Codec.fit(model, mu, log_var, step)
    unseen, _ = posteriors(rng, 50)
    unseen[0] *= 100  # and one that no table has
    unseen[1] *= -100
    values = codec.quantise(unseen)
    for row in values:
        np.testing.assert_array_equal(codec.unpack(codec.pack(row), "it"), row)
    assert codec.dequantise(values).dtype == np.float32
    scale = np.sqrt(np.mean([np.exp(row.astype(float)) for row in log_var], axis=0))
    np.testing.assert_allclose(codec.scale, scale, rtol=1e-6)
    # Half a step; and what float32 can say of a code.
    assert (np.abs(codec.dequantise(values) - unseen) <= step * scale / 2 + 1e-6 * np.abs(unseen)).all()


def test_frequencies_are_those_of_training_codes_plus_one(model):
    mu = np.zeros((10, Z), np.float32)
    mu[:, 1] = [0, 0, 0, 0, 0, 0, 0, 1, 1, 3]
    mu[:, 2] = -5 * WIDEST
    mu[0, 3], mu[1, 3] = 7 * WIDEST, -7 * WIDEST
    codec = Codec.fit(model, mu, np.zeros_like(mu), 1)
    assert [np.diff(table).tolist() for table in codec.tables[:3]] == [[11, 1], [8, 3, 1, 2, 1], [1, 11]]
    assert codec.lowest[:4].tolist() == [0, 0, -WIDEST, -WIDEST]
    assert (codec.tables[3][-1], np.diff(codec.tables[3])[WIDEST], np.diff(codec.tables[3])[-1]) == (
        10 + 2 * WIDEST + 2, 9, 3)  # fmt: skip
    values = codec.quantise(mu)
    for row in values:
        np.testing.assert_array_equal(codec.unpack(codec.pack(row), "it"), row)


def test_bits_are_what_a_loop_over_the_tables_says(codec, rng):
    values = codec.quantise(posteriors(rng, 20)[0])
    lowest, count = codec.lowest, [len(table) - 2 for table in codec.tables]
    values[0, :3] = lowest[:3] - [1, 2, 1000]
    values[1, :3] = lowest[:3] + count[:3] + [0, 1, 1022]
    total = []
    for row in values:
        bits = 0.0
        for j, value in enumerate(row - lowest):
            table, escape = codec.tables[j], not 0 <= value < count[j]
            symbol = count[j] if escape else value
            bits -= math.log2((table[symbol + 1] - table[symbol]) / table[-1])
            if escape:  # the side, then the whole number that says how far out
                excess = -value if value < 0 else value - count[j] + 1
                bits += 1 + 2 * math.floor(math.log2(excess)) + 1
        total.append(bits)
    np.testing.assert_allclose(codec.bits(values), total, rtol=1e-12)
    for row, bits in zip(values, total, strict=True):
        assert len(codec.pack(row)) - HEADER <= math.ceil(bits / 8)


def test_the_price_at_equal_noise_is_about_the_kl_divergence(model, rng):
    """Of a code that fills the prior, rounded with the posterior's own variance: h(mu) - log(step * scale) in theory.

    0.5 log(2 pi e var(mu)) - log(sqrt(12) scale) = KL + 0.5 log(2 pi e / 12) + 0.5 log(var(mu)) for scale << 1, with
    KL = -log(scale): 0.18 nats a dimension more than the KL.
    """
    deviations = np.full(Z, 0.02)
    mu = (rng.standard_normal((4000, Z)) * np.sqrt(1 - deviations**2)).astype(np.float32)
    log_var = np.broadcast_to(2 * np.log(deviations), mu.shape).astype(np.float32)
    codec = Codec.fit(model, mu[:3000], log_var[:3000], math.sqrt(12))
    bits = codec.bits(codec.quantise(mu[3000:])).mean()
    nats = Z * (-math.log(0.02) + 0.5 * math.log(2 * math.pi * math.e / 12))
    assert bits * math.log(2) == pytest.approx(nats, rel=0.02)


def test_dimensions_that_tell_nothing_cost_nothing(model):
    mu = np.zeros((1000, Z), np.float32)
    codec = Codec.fit(model, mu, mu, 2)
    assert len(codec.pack(np.zeros(Z, int))) == HEADER
    assert codec.bits(np.zeros((1, Z), int))[0] < 0.02


def test_every_changed_byte_and_every_cut_is_refused(codec, rng):
    mu = posteriors(rng, 3)[0]
    mu[2, 0] *= 50
    for content in map(codec.pack, codec.quantise(mu)):
        codec.unpack(content, "it")
        damaged = [content[:length] for length in range(len(content))] + [content + b"\0", content + content]
        damaged += [content[:i] + bytes([other]) + content[i + 1 :]
                    for i in range(len(content)) for other in range(256) if other != content[i]]
        for other in damaged:
            with pytest.raises(InputError, match=r"^it (is|was made) ") as error:
                codec.unpack(other, "it")
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "it is empty"),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "it is no .vaez file"),
    (b"z2" + bytes(20), "it is no .vaez file of version 1, which this program reads"),
    (b"z", "it is no .vaez file of version 1"),
    (b"z1abc", "it is damaged"),
    (b"z1" + bytes(10_000), "it is damaged"),
])
def test_what_is_no_vaez_file_is_refused(codec, content, complaint):
    with pytest.raises(InputError, match=complaint):
        codec.unpack(content, "it")


def test_another_model_other_tables_and_another_step_are_noticed(codec, model, rng):
    content = codec.pack(codec.quantise(posteriors(rng, 1)[0])[0])
    training = posteriors(np.random.default_rng(0), 500)
    codec.unpack(content, "it")
    Codec.fit(model, *training, 2).unpack(content, "it")
    parts = dict(zip(("step", "scale", "lowest", "frequencies", "lengths"), (
        codec.step, codec.scale, codec.lowest, codec.frequencies, codec.lengths), strict=True))  # fmt: skip
    more = np.eye(1, len(codec.frequencies), dtype=np.int64)[0]
    others = [Codec(model, **parts | {name: part}) for name, part in (
        ("step", 2.001), ("scale", codec.scale * 1.001), ("lowest", codec.lowest - 1),
        ("frequencies", codec.frequencies + more))]  # fmt: skip
    for other in [Codec.fit(VAE(**model.settings, seed=2), *training, 2), *others]:
        with pytest.raises(InputError, match="it was made with another checkpoint or codec"):
            other.unpack(content, "it")
        # Should the two bytes agree by chance, the checksum is about the rest of the fingerprint, too.
        with pytest.raises(InputError, match="its checksum is another"):
            other.unpack(content[:2] + other.fingerprint[:2] + content[4:], "it")


def test_a_code_that_no_face_has_is_refused_even_with_a_checksum(codec):
    for code in (b"\xff" * 150, b"\xff" * 32 * Z):
        content = b"z1" + codec.fingerprint[:2] + zlib.crc32(codec.fingerprint + code).to_bytes(4, "big") + code
        with pytest.raises(InputError, match="it holds no code of a face"):
            codec.unpack(content, "it")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_codes_that_cannot_be_coded_are_refused(model, codec, rng, bad):
    mu, log_var = posteriors(rng, 5)
    mu[3, 2] = bad
    with pytest.raises(InputError, match="a code is not finite, or the step is too small"):
        codec.quantise(mu)
    with pytest.raises(InputError, match="a code is not finite, or the step is too small"):
        Codec.fit(model, mu, log_var, 2)


def test_the_largest_codes_fit_the_longest_file(model):
    mu = np.zeros((200, Z), np.float32)
    codec = Codec.fit(model, mu, mu, 1)
    for value in (LARGEST, -LARGEST):
        row = np.full(Z, value)
        np.testing.assert_array_equal(codec.unpack(codec.pack(row), "it"), row)


def test_a_codec_is_saved_and_loaded(codec, model, tmp_path, rng):
    path, values = tmp_path / "runs" / "codec.npz", codec.quantise(posteriors(rng, 1)[0])[0]
    codec.save(path)
    loaded = Codec.load(path, model)
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.write(tmp_path / "a.vaez", values) == (tmp_path / "a.vaez").stat().st_size
    np.testing.assert_array_equal(codec.read(tmp_path / "a.vaez"), values)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Codec.load(path, VAE(**model.settings, seed=2))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Codec.load(path, VAE(image_size=16, channels=[4], latent_dim=Z + 1))
    with pytest.raises(CheckpointError, match="there is no codec"):
        Codec.load(tmp_path / "other.npz", model)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged, of another version, or no codec"):
        Codec.load(path, model)


@pytest.mark.parametrize(("name", "change"), [
    ("scale", lambda scale: scale[1:]),
    ("scale", lambda scale: 0 * scale),
    ("scale", lambda scale: np.nan * scale),
    ("scale", lambda scale: np.inf * scale),
    ("scale", lambda scale: scale.astype("float32")),
    ("lowest", lambda lowest: lowest.astype(float)),
    ("lengths", lambda lengths: lengths - lengths),
    ("lengths", lambda lengths: np.array("x")),
    ("frequencies", lambda frequencies: frequencies[:-1]),
    ("frequencies", lambda frequencies: frequencies - 1),
    ("frequencies", lambda frequencies: None),
    ("step", lambda step: 0.0),
    ("step", lambda step: "2"),
    ("step", lambda step: float("inf")),
    ("codec_of", lambda model: None),
])
def test_a_codec_that_makes_no_sense_is_refused(codec, model, tmp_path, name, change):
    codec.save(tmp_path / "codec.npz")
    arrays, info = checkpoint.load(tmp_path / "codec.npz")
    place = arrays if name in arrays else info
    place[name] = change(place[name])
    if place[name] is None:
        del place[name]
    content = checkpoint.sealed({"info": np.array(json.dumps(info)), **arrays})
    (tmp_path / "codec.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged, of another version, or no codec"):
        Codec.load(tmp_path / "codec.npz", model)
