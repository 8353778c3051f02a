"""The judge of samples where the right figure is known: nothing to tell, everything, and something in between."""

import math
import re

import numpy as np
import pytest

from vae_np.errors import InputError
from vae_np.study.judge import judge, learn, score
from vae_np.study.logistic import area_under_curve


def ramps(count, seed, size=16):
    """Pictures (count, size, size, 3) that change linearly from left to right and from top to bottom, with some noise.

    All six slopes and levels are random, in every channel.
    """
    rng = np.random.default_rng(seed)
    level, right, down = rng.random((3, count, 1, 1, 3), dtype=np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    noise = 0.05 * rng.standard_normal((count, size, size, 3), dtype=np.float32)
    x = level + 0.3 * (right - 0.5) * ramp[:, None] + 0.3 * (down - 0.5) * ramp[:, None, None] + noise
    return x.clip(0, 1)


def pasted(count, seed):
    """Ramps whose upper and lower halves come from different pictures."""
    x, other = ramps(count, seed), ramps(count, [seed, 1])
    x[:, 8:] = other[:, 8:]
    return x


def test_pictures_of_one_distribution_cannot_be_told_apart(way):
    area, error = judge(ramps(300, 1), ramps(300, 2))
    assert error == pytest.approx(math.sqrt(301 / 12) / 150, rel=0.05)
    assert abs(area - 0.5) < 4 * error


def test_a_judge_who_knows_all_it_learned_from_by_heart_is_not_judged_by_that(monkeypatch):
    learned = []

    def learn_and_tell(real, drawn, *others):
        network = learn(real, drawn, *others)
        scores = np.concatenate([score(network, real), score(network, drawn)])
        learned.append(area_under_curve(scores, np.arange(len(scores)) < len(real)))
        return network

    monkeypatch.setattr("vae_np.study.judge.learn", learn_and_tell)
    areas, errors = np.transpose([judge(ramps(80, [seed, 1]), ramps(80, [seed, 2]), seed, 400) for seed in range(4)])
    assert min(learned) > 0.98
    assert abs(areas.mean() - 0.5) < 4 * errors.mean() / 2


def test_what_differs_is_told_apart(way):
    area, error = judge(ramps(200, 1), pasted(200, 2), steps=300)
    assert area > 0.97
    assert 0 < error < 0.02


def test_a_judge_gets_as_far_as_anyone_can_and_no_further():
    """Grey pictures whose level is normal: the best score is the level, and its area Phi(difference / sqrt(2))."""
    rng = np.random.default_rng(0)
    real, drawn = (np.ones((600, 8, 8, 3), np.float32) * (level + 0.05 * rng.standard_normal((600, 1, 1, 1)))
                   for level in (0.525, 0.475))
    area, error = judge(real.astype(np.float32), drawn.astype(np.float32), steps=300)
    assert abs(area - (1 + math.erf(0.5)) / 2) < 4 * error
    assert error < 0.025


def test_a_judge_is_blind_to_left_and_right_but_not_to_above_and_below():
    slope = np.linspace(0, 0.5, 16, dtype=np.float32)[:, None]
    rising, falling = ramps(120, 1) / 2 + slope, ramps(120, 2) / 2 + slope[::-1]
    area, error = judge(rising, falling, steps=200)
    assert abs(area - 0.5) < 4 * error
    assert judge(rising.swapaxes(1, 2), falling.swapaxes(1, 2), steps=200)[0] > 0.99


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (6, 6), (10, 10), (24, 40), (64, 64)])
def test_pictures_of_any_size(shape, way, rng):
    real, drawn = rng.random((2, 5, *shape, 3), dtype=np.float32)
    area, error = judge(real, drawn[:3], steps=2)
    assert 0 <= area <= 1 and 0 <= error < 0.5


def test_the_same_seed_gives_the_same_figure_and_nothing_is_written_to():
    real, drawn = ramps(65, 1), ramps(40, 2)
    for x in (real, drawn):
        x.flags.writeable = False
    first, again, other = (judge(real, drawn, seed, steps=30) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_picture_is_learned_from_or_judged_by_never_both(monkeypatch):
    """Of odd numbers, too. Each picture has a level of its own, by which it is known again."""
    real, drawn = (np.linspace(*ends, count, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 3), np.float32)
                   for ends, count in (((0, 0.4), 9), ((0.6, 1), 6)))
    learned, judged = [], []
    monkeypatch.setattr("vae_np.study.judge.learn", lambda real, drawn, *_: learned.extend([real, drawn]))
    monkeypatch.setattr("vae_np.study.judge.score", lambda _, x: (judged.append(x), x[:, 0, 0, 0])[1])
    assert judge(real, drawn)[0] == 0
    assert [len(x) for x in learned + judged] == [4, 3, 5, 3]
    for x, seen, new in zip((real, drawn), learned, judged, strict=True):
        both = np.concatenate([seen, new])[:, 0, 0, 0]
        np.testing.assert_array_equal(np.sort(both), x[:, 0, 0, 0])
        assert not np.array_equal(both, x[:, 0, 0, 0]), "by chance, whatever order they are in"


good = np.full((4, 8, 8, 3), 0.5, np.float32)


@pytest.mark.parametrize(("real", "drawn", "complaint"), [
    (good, good[:0], "expected drawn pictures as a float32 array (N, H, W, 3) with values in [0, 1], two at least: one "
     "to learn from and one to judge; got 0"),
    (good[:1], good, "two at least: one to learn from and one to judge; got 1"),
    (good, good[:, :4], "drawn pictures are (4, 8, 3), the others (8, 8, 3)"),
    (good[..., 0], good, "expected real pictures as a float32 array (N, H, W, 3) with values in [0, 1], got shape"),
    (good, good[..., :1], "got shape (4, 8, 8, 1)"),
    (None, good, "got NoneType"),
    (good, np.full((4, 8, 8, 3), 128, np.uint8), "got uint8"),
    (good, 255 * good, "got values from 127.5 to 127.5"),
    (good * np.nan, good, "expected real pictures as a float32 array (N, H, W, 3) with values in [0, 1], got values"),
])  # fmt: skip
def test_what_cannot_be_judged_is_one_line(real, drawn, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)) as error:
        judge(real, drawn)
    assert "\n" not in str(error.value)
