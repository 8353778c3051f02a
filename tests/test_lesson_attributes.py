"""Lesson 7 at small size, in a process of its own: its pictures, its figures beside what is known, what it refuses."""

import json
import re

import numpy as np
import pytest
from conftest import write_dataset
from test_lessons import fail, pictures_in, succeed

from vae_np import VAE
from vae_np.disk.dataset import Dataset, checksum
from vae_np.run.trainer import Trainer
from vae_np.study.logistic import LogisticRegression, area_under_curve
from vae_np.train import Settings, to_float

LESSON = "07_attributes.py"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a dataset, whose attribute Lucky comes with Red three times in four, and a model trained on it.

    Old is an attribute of training faces alone, and New of others.
    """
    folder = tmp_path_factory.mktemp("room")
    red = np.array(write_dataset(folder / "faces", train=400, validation=10, test=100).column("Red"))
    lucky = np.where(np.random.default_rng(0).random(len(red)) < 0.75, red, ~red)
    old = red & (np.arange(len(red)) < 400)
    np.save(folder / "faces/attributes.npy", np.stack([red, lucky, old, red & ~old], axis=1))
    path = folder / "faces/dataset.json"
    info = json.loads(path.read_text(encoding="utf-8")) | {"attribute_names": ["Red", "Lucky", "Old", "New"]}
    info["checksums"]["attributes.npy"] = checksum(folder / "faces/attributes.npy")
    path.write_text(json.dumps(info), encoding="utf-8")
    settings = Settings(epochs=15, batch_size=8, learning_rate=0.005, beta=0.1)
    dataset = Dataset(folder / "faces")
    images = dataset.split("train"), dataset.split("validation")
    trainer = Trainer(VAE(16, (6, 8), latent_dim=9), *images, settings, dataset.description)
    for _ in range(settings.epochs):
        trainer.train_epoch()
    trainer.save(folder / "runs/03_train/checkpoint.npz")
    return folder, trainer.model


@pytest.fixture(scope="module")
def output(room):
    return succeed(LESSON, "--attributes", "Red", "Lucky", "Red", "Old", cwd=room[0])


def row_of(output, title, name):
    """The numbers of the line that begins with name, in the table whose head begins with title."""
    lines = output[output.index(title) :].splitlines()
    line = next(line for line in lines if line.strip().removeprefix("+ ").startswith(name))
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", line)]


def test_the_table_is_of_classifiers_that_learned_from_other_faces(room, output):
    assert "directions for Red, Lucky\n" in output  # each once, and none that all or none of the faces have
    folder, model = room
    assert pictures_in(folder / "runs/07_attributes") == {
        "classifiers.png", "strengths.png", "correction.png", "transfer.png"}  # fmt: skip
    dataset = Dataset(folder / "faces")
    train, test = dataset.splits["train"], dataset.splits["test"]
    mu, _ = model.encode(to_float(dataset.images))
    for name in ("Red", "Lucky"):
        column = dataset.column(name)
        share, baseline, accuracy, area = row_of(output, "100 test faces", name)
        assert share == pytest.approx(100 * column[test].mean(), abs=0.051)
        majority = column[train].mean() > 0.5
        assert baseline == pytest.approx(100 * (column[test] == majority).mean(), abs=0.051)
        scores = LogisticRegression.fit(mu[train], column[train]).scores(mu[test])
        assert accuracy == pytest.approx(100 * ((scores > 0) == column[test]).mean(), abs=0.051)
        assert area == pytest.approx(area_under_curve(scores, column[test]), abs=0.00051)
    # A model of a few ramps knows its colours well, and luck only as far as it comes with red.
    _, baseline, accuracy, area = row_of(output, "100 test faces", "Red")
    assert accuracy > baseline + 15
    assert area > 0.9
    assert 0.55 < row_of(output, "100 test faces", "Lucky")[3] < area - 0.1
    assert "Old" not in output  # since no face of the test split has it
    assert "New" not in output


def test_the_correction_keeps_lucky_from_carrying_red(output):
    # Luck cannot be seen but for red, which comes with it: held apart, nothing of its direction is left.
    own, lucky = row_of(output, "difference of means, moves", "Lucky")
    assert min(own, lucky) > 0.5
    corrected, corrected_lucky = row_of(output, "corrected, moves", "Lucky")
    assert abs(corrected) < 0.4 * own
    assert corrected_lucky < 0.7 * lucky
    assert row_of(output, "corrected, moves", "Red")[0] > 1  # red is what it was


def test_what_is_added_and_moved_is_in_the_picture(output):
    numbers = row_of(output, "held-out faces without", "Red")
    shift, _, as_is, as_is_redrawn, added, added_redrawn, moved, moved_redrawn = numbers
    assert 0 < shift < 1
    assert max(as_is, as_is_redrawn) < 30
    assert min(added, added_redrawn, moved, moved_redrawn) > 70
    in_the_code, in_the_picture = (row_of(output, title, "Red")[0] for title in ("corrected, moves", "corrected, in"))
    assert 1 < in_the_picture < in_the_code  # the decoder does not draw all of it


def test_what_cannot_be_done_is_one_line(room, tmp_path):
    few = write_dataset(tmp_path / "few", train=40, validation=1, test=1).folder
    for arguments, complaint in (
        (["--attributes", "Red", "Blue"], "faces has no attribute 'Blue'; it has Red, Lucky, Old, New"),
        ([], "no attribute 'Smiling'; it has Red, Lucky, Old, New"),
        (["--attributes", "Old", "New"], "all or none of the faces have Old, New"),
        (["--data", few, "--attributes", "Red"], "this lesson needs 2 held-out images or more, and there are 1"),
    ):
        status, line = fail(LESSON, *arguments, "--out", tmp_path / "none", cwd=room[0])
        assert (status, line.endswith(complaint)) == (1, True), line
    assert not (tmp_path / "none").exists()
    status, line = fail(LESSON, cwd=tmp_path)
    assert (status, "make it with: python lessons/03_train.py" in line) == (2, True)
