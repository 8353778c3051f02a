"""Codes come back from their bytes exactly, cost what their frequencies say, and no damaged file becomes a face."""

import json
import math
import zlib

import numpy as np
import pytest

from vae_np import VAE
from vae_np.disk import sealed
from vae_np.errors import CheckpointError, InputError
from vae_np.study.codec import HEADER, LARGEST, WIDEST, Codec

Z = 6
DEVIATIONS = np.array([0.05, 0.1, 0.3, 0.7, 1.0, 1.0])  # of the posterior; the last two dimensions tell nothing


def posteriors(rng, count):
    """mu and log_var (count, Z) as an encoder gives them that fills the prior."""
    mu = rng.standard_normal((count, Z)) * np.sqrt(1 - DEVIATIONS**2)
    log_var = 2 * np.log(DEVIATIONS) + 0.1 * rng.standard_normal((count, Z))
    return mu.astype(np.float32), log_var.astype(np.float32)


TRAINING = posteriors(np.random.default_rng(0), 500)
MODEL = VAE(image_size=16, channels=[4], latent_dim=Z, seed=1)
CODEC = Codec.fit(MODEL, *TRAINING, step=2)


def assert_come_back(codec, values):
    for row in values:
        np.testing.assert_array_equal(codec.unpack(codec.pack(row), "it"), row)


@pytest.mark.parametrize("step", [0.01, 0.5, 2, 30])
def test_codes_come_back_and_are_near(rng, step):
    mu, log_var = posteriors(rng, 300)
    codec = Codec.fit(MODEL, mu, log_var, step)
    unseen, _ = posteriors(rng, 50)
    unseen[:2] *= [[100], [-100]]  # and two that no table has
    values = codec.quantise(unseen)
    assert_come_back(codec, values)
    assert codec.dequantise(values).dtype == np.float32
    scale = np.sqrt(np.mean([np.exp(row.astype(float)) for row in log_var], axis=0))
    np.testing.assert_allclose(codec.scale, scale, rtol=1e-6)
    # Half a step; and what float32 can say of a code.
    assert (np.abs(codec.dequantise(values) - unseen) <= step * scale / 2 + 1e-6 * np.abs(unseen)).all()


def test_frequencies_are_those_of_training_codes_plus_one():
    mu = np.zeros((10, Z), np.float32)
    mu[:, 1] = [0, 0, 0, 0, 0, 0, 0, 1, 1, 3]
    mu[:, 2] = -5 * WIDEST
    mu[:2, 3] = 7 * WIDEST, -7 * WIDEST
    codec = Codec.fit(MODEL, mu, np.zeros_like(mu), 1)
    assert [np.diff(table).tolist() for table in codec.tables[:3]] == [[11, 1], [8, 3, 1, 2, 1], [1, 11]]
    assert codec.lowest[:4].tolist() == [0, 0, -WIDEST, -WIDEST]
    wide = codec.tables[3]
    assert (wide[-1], np.diff(wide)[WIDEST], np.diff(wide)[-1]) == (10 + 2 * WIDEST + 2, 9, 3)
    assert_come_back(codec, codec.quantise(mu))
    assert_come_back(codec, [np.full(Z, LARGEST), np.full(Z, -LARGEST)])  # the longest file there is
    codec = Codec.fit(MODEL, np.zeros((1000, Z), np.float32), np.zeros((1000, Z)), 2)
    assert len(codec.pack(np.zeros(Z, int))) == HEADER, "dimensions that tell nothing cost nothing"
    assert codec.bits(np.zeros((1, Z), int))[0] < 0.02


def test_bits_are_those_of_the_symbols_and_of_what_follows_an_escape(rng):
    values = CODEC.quantise(posteriors(rng, 20)[0])
    first, last = CODEC.lowest[:3], CODEC.lowest[:3] + CODEC.lengths[:3] - 2
    values[0, :3] = first - [1, 2, 1000]  # beside the tables, and far away
    values[1, :3] = np.add(last, [1, 2, 1023])
    expected = np.zeros(20)
    for n, row in enumerate(values):
        for value, lowest, table in zip(row, CODEC.lowest, CODEC.tables, strict=True):
            place, escape = value - lowest, len(table) - 2
            symbol = place if 0 <= place < escape else escape
            expected[n] += math.log2(table[-1] / (table[symbol + 1] - table[symbol]))
            if symbol == escape:  # the side, and a whole number of 1 or more
                expected[n] += 2 + 2 * math.floor(math.log2(-place if place < 0 else place - escape + 1))
    np.testing.assert_allclose(CODEC.bits(values), expected, rtol=1e-9)
    assert ([len(CODEC.pack(row)) - HEADER for row in values] <= np.ceil(expected / 8)).all()


def test_the_price_at_equal_noise_is_about_the_kl_divergence(rng):
    # Of codes that fill the prior, h(mu) - log(step * scale) = KL + log(2 pi e / 12) / 2, with KL = -log(scale).
    mu = (rng.standard_normal((4000, Z)) * math.sqrt(1 - 0.02**2)).astype(np.float32)
    codec = Codec.fit(MODEL, mu[:3000], np.full_like(mu[:3000], 2 * math.log(0.02)), math.sqrt(12))
    bits = codec.bits(codec.quantise(mu[3000:])).mean()
    nats = Z * (-math.log(0.02) + 0.5 * math.log(2 * math.pi * math.e / 12))
    assert bits * math.log(2) == pytest.approx(nats, rel=0.02)


def test_every_changed_byte_and_every_cut_is_refused(rng):
    mu = posteriors(rng, 3)[0]
    mu[2, 0] *= 50
    with pytest.raises(InputError, match=r"it is no .vaez file of version 1, which this program reads"):
        CODEC.unpack(b"z2" + bytes(20), "it")
    for content in map(CODEC.pack, CODEC.quantise(mu)):
        CODEC.unpack(content, "it")
        damaged = [content[:length] for length in range(len(content))] + [content + b"\0", content + bytes(10_000)]
        damaged += [content[:i] + bytes([other]) + content[i + 1 :]
                    for i in range(len(content)) for other in range(256) if other != content[i]]
        for other in damaged:
            with pytest.raises(InputError, match=r"^it (is|was made) ") as error:
                CODEC.unpack(other, "it")
            assert "\n" not in str(error.value)


def test_another_model_other_tables_and_another_step_are_noticed(rng):
    content = CODEC.pack(CODEC.quantise(posteriors(rng, 1)[0])[0])
    CODEC.unpack(content, "it")
    Codec.fit(MODEL, *TRAINING, 2).unpack(content, "it")
    parts = {name: getattr(CODEC, name) for name in ("step", "scale", "lowest", "frequencies", "lengths")}
    more = np.eye(1, len(CODEC.frequencies), dtype=np.int64)[0]
    others = [Codec(MODEL, **parts | other) for other in (
        {"step": 2.001}, {"scale": CODEC.scale * 1.001}, {"lowest": CODEC.lowest - 1},
        {"frequencies": CODEC.frequencies + more})]  # fmt: skip
    for other in [Codec.fit(VAE(**MODEL.settings, seed=2), *TRAINING, 2), *others]:
        with pytest.raises(InputError, match="it was made with another checkpoint or codec"):
            other.unpack(content, "it")
        # Should the two bytes agree by chance, the checksum is about the rest of the fingerprint, too.
        with pytest.raises(InputError, match="its checksum is another"):
            other.unpack(content[:2] + other.fingerprint[:2] + content[4:], "it")


@pytest.mark.parametrize("code", [b"\xff" * 150, b"\xff" * 32 * Z])
def test_a_code_that_no_face_has_is_refused_even_with_a_checksum(code):
    content = b"z1" + CODEC.fingerprint[:2] + zlib.crc32(CODEC.fingerprint + code).to_bytes(4, "big") + code
    with pytest.raises(InputError, match="it holds no code of a face"):
        CODEC.unpack(content, "it")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_codes_that_cannot_be_coded_are_refused(rng, bad):
    mu, log_var = posteriors(rng, 5)
    mu[3, 2] = bad
    for attempt in (lambda: CODEC.quantise(mu), lambda: Codec.fit(MODEL, mu, log_var, 2)):
        with pytest.raises(InputError, match="a code is not finite, or the step is too small"):
            attempt()


def test_a_codec_is_saved_and_loaded(tmp_path, rng):
    path, values = tmp_path / "runs" / "codec.npz", CODEC.quantise(posteriors(rng, 1)[0])[0]
    CODEC.save(path)
    loaded = Codec.load(path, MODEL)
    assert loaded.fingerprint == CODEC.fingerprint
    assert loaded.write(tmp_path / "a.vaez", values) == (tmp_path / "a.vaez").stat().st_size
    np.testing.assert_array_equal(CODEC.read(tmp_path / "a.vaez"), values)
    for other in (VAE(**MODEL.settings, seed=2), VAE(image_size=16, channels=[4], latent_dim=Z + 1)):
        with pytest.raises(CheckpointError, match="belongs to another model"):
            Codec.load(path, other)
    with pytest.raises(CheckpointError, match="there is no codec"):
        Codec.load(tmp_path / "other.npz", MODEL)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged, of another version, or no codec"):
        Codec.load(path, MODEL)


@pytest.mark.parametrize(("name", "change"), [
    ("scale", lambda scale: scale[1:]),
    ("scale", lambda scale: 0 * scale),
    ("scale", lambda scale: np.inf * scale),
    ("scale", lambda scale: scale.astype("float32")),
    ("lowest", lambda lowest: lowest.astype(float)),
    ("lengths", lambda lengths: lengths - lengths),
    ("lengths", lambda lengths: np.array("x")),
    ("frequencies", lambda frequencies: frequencies[:-1]),
    ("frequencies", lambda frequencies: frequencies - 1),
    ("step", lambda step: 0.0),
    ("step", lambda step: "2"),
    ("codec_of", lambda model: None),
])
def test_a_codec_that_makes_no_sense_is_refused(tmp_path, name, change):
    CODEC.save(tmp_path / "codec.npz")
    arrays, info = sealed.load(tmp_path / "codec.npz")
    place = arrays if name in arrays else info
    place[name] = change(place[name])
    if place[name] is None:
        del place[name]
    (tmp_path / "codec.npz").write_bytes(sealed.seal({"info": np.array(json.dumps(info)), **arrays}))
    with pytest.raises(CheckpointError, match="is damaged, of another version, or no codec"):
        Codec.load(tmp_path / "codec.npz", MODEL)
