"""The benchmark: what it prints, that it times the trainer's own steps, and nothing about how fast they are."""

import json
import os
import re
import subprocess
import sys

import pytest

from vae_np import VAE, backend
from vae_np.losses import LIKELIHOODS
from vae_np.run import benchmark
from vae_np.run.trainer import Trainer

KEYS = ["backend", "batch_size", "threads", "images_per_second", "peak_memory_mb"]
QUICK = ["--batch-size", "3", "--steps", "2", "--threads", "1"]


@pytest.fixture
def measured(capsys):
    """Runs the benchmark with these arguments, in this process: the lines of its output, and the last one read."""

    def run(*arguments):
        assert benchmark.main(list(arguments)) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        *table, last = captured.out.splitlines()
        return table, json.loads(last)

    return run


@pytest.fixture
def short(monkeypatch):
    """A warm-up of one step for the stand-in for CuPy, which takes long for each."""
    if backend.NAME != "numpy":
        monkeypatch.setattr(benchmark, "WARM_UP", 1)


def test_the_last_line_is_json(tmp_path):
    command = [sys.executable, "-m", "vae_np.benchmark", "--batch-size", "4", "--steps", "2", "--threads", "1"]
    environment = {**os.environ, "PYTHONWARNINGS": "error::RuntimeWarning"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == KEYS
    assert (result["backend"], result["batch_size"], result["threads"]) == (backend.NAME, 4, 1)
    assert type(result["batch_size"]) is type(result["threads"]) is int
    assert type(result["images_per_second"]) is float
    assert 0 < result["images_per_second"] < 1e6
    if sys.platform != "win32":
        assert type(result["peak_memory_mb"]) is int
        # Python with NumPy holds some 30 MB; parameters, gradients, their sums and Adam's moments are 4.5 MB and more
        # each. A unit taken for another would be off by a factor of 1,000.
        assert 50 < result["peak_memory_mb"] < 20_000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_can_be_timed(likelihood, measured, short, monkeypatch):
    names = []
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, x: names.append(self.likelihood.name) or step(self, x))
    table, result = measured(*QUICK, "--likelihood", likelihood)
    assert table == []
    assert (list(result), result["batch_size"]) == (KEYS, 3)
    assert set(names) == {likelihood}


@pytest.mark.skipif(backend.NAME != "numpy", reason="a GPU has one worker")
def test_it_takes_as_many_threads_as_it_is_told(measured):
    assert measured("--batch-size", "2", "--steps", "1", "--threads", "2")[1]["threads"] == 2


def test_it_takes_the_steps_of_the_trainer_three_of_them_to_warm_up(measured, monkeypatch):
    batches = []
    step = Trainer.train_step

    def count(self, x):
        batches.append(x)
        return step(self, x)

    monkeypatch.setattr(Trainer, "train_step", count)
    measured(*QUICK)
    assert len(batches) == 3 + 2
    for x in batches:
        assert (x.shape, x.dtype.name) == ((3, 64, 64, 3), "float32")
        assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1


class Clock:
    """Stands in for the clock and for the training step, which takes as long as it says here, in seconds."""

    def __init__(self, *durations):
        self.durations, self.now = list(durations), 0.0

    def perf_counter(self):
        return self.now

    def train_step(self, x):
        self.now += self.durations.pop(0)


def test_images_per_second_are_those_of_the_median_step_after_the_warm_up(measured, monkeypatch):
    clock = Clock(1000, 1000, 1000, 2, 1, 50, 4, 0.5)
    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(Trainer, "train_step", lambda self, x: clock.train_step(x))
    _, result = measured("--batch-size", "10", "--steps", "5", "--threads", "1")
    assert result["images_per_second"] == 10 / 2
    assert clock.durations == []


def rows_of(table):
    """The rows of the profile: {name: [number, ...]}."""
    rows = {}
    for line in table[1:]:
        name, numbers = re.fullmatch(r"(.*?\S)((?:\s+-?[\d.]+)+)", line).groups()
        assert name not in rows
        rows[name] = [float(number) for number in numbers.split()]
    return rows


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_profile_has_a_row_for_every_layer_and_its_rows_add_up(likelihood, measured, short):
    table, result = measured("--batch-size", "4", "--steps", "2", "--threads", "2", "--profile",
                             "--likelihood", likelihood)
    assert list(result) == KEYS
    assert table[0].split()[-2:] == ["forward", "backward"]
    assert len({len(line) for line in table[:-4]}) == 1, "columns are below each other"
    rows = rows_of(table)
    model = VAE()
    layers = [f"{part}.{number} {layer!r}" for part in ("encoder", "decoder")
              for number, layer in enumerate(getattr(model, part).layers)]
    assert list(rows)[: len(layers)] == layers
    assert {len(rows[name]) for name in layers} == {2}
    for name in layers:
        if "Conv" in name or "Dense" in name:  # others may take less than what is printed
            assert min(rows[name]) > 0, name
    *parts, (last, (whole,)) = rows.items()
    assert last == "all"
    assert {len(numbers) for name, numbers in parts[len(layers) :]} == {1}
    numbers = [number for _, numbers in parts for number in numbers]
    assert abs(sum(numbers) - whole) <= 0.0005 * (len(numbers) + 1) + 1e-9, "each is rounded to 0.001"
    assert min(numbers) >= 0, {name: numbers for name, numbers in parts if min(numbers) < 0}


def test_the_profile_measures_what_the_json_measures(measured, monkeypatch):
    # Two steps of equal length, of which the clock says that nothing is spent inside any layer.
    clock = Clock(1000, 1000, 1000, 3, 3)
    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(Trainer, "train_step", lambda self, x: clock.train_step(x))
    table, result = measured("--batch-size", "10", "--steps", "2", "--profile")
    assert result["images_per_second"] == pytest.approx(10 / 3, abs=0.05)
    assert rows_of(table)["all"] == [300]  # milliseconds an image


@pytest.mark.parametrize("arguments", [
    ["--batch-size", "0"], ["--batch-size", "many"], ["--steps", "0"], ["--steps", "-1"], ["--threads", "0"],
    ["--threads", "17"], ["--threads", "1.5"], ["--likelihood", "poisson"], ["--profile", "yes"], ["--bath-size", "4"]])
def test_wrong_usage_is_one_line_and_status_2(arguments, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "VAE", lambda: pytest.fail("nothing may be measured"))
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments)
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith("error: ")
    assert captured.err.endswith("; see python -m vae_np.benchmark --help\n")


def test_wrong_usage_of_the_program_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "vae_np.benchmark", "--steps", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: argument --steps: invalid whole number value: 'none'")
    assert done.stderr.count("\n") == 1
