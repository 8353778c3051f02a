"""The benchmark: what it prints, that it times the trainer's own steps, and nothing about how fast they are."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from vae_np import VAE, backend
from vae_np.losses import LIKELIHOODS
from vae_np.run import benchmark
from vae_np.train import Training

KEYS = {"backend": str, "batch_size": int, "threads": int, "images_per_second": float,
        "peak_memory_mb": type(None) if sys.platform == "win32" else int}  # fmt: skip


@pytest.fixture
def measured(capsys):
    """Runs the benchmark with these arguments, in this process: the lines of its output, and the last one read."""

    def run(arguments):
        assert benchmark.main(arguments.split()) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        *table, last = captured.out.splitlines()
        return table, json.loads(last)

    return run


def test_the_last_line_is_json(tmp_path):
    command = [sys.executable, "-m", "vae_np.benchmark", "--batch-size", "4", "--steps", "2", "--threads", "1"]
    environment = {**os.environ, "PYTHONWARNINGS": "error::RuntimeWarning"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout.splitlines()[-1])
    assert {name: type(value) for name, value in result.items()} == KEYS
    assert (result["backend"], result["batch_size"], result["threads"]) == (backend.NAME, 4, 1)
    assert 0 < result["images_per_second"] < 1e6
    if sys.platform != "win32":
        # Python with NumPy holds some 30 MB; parameters, gradients, their sums and Adam's moments are 4.5 MB and more
        # each. A unit taken for another would be off by a factor of 1,000.
        assert 50 < result["peak_memory_mb"] < 20_000
    assert list(tmp_path.iterdir()) == []


def rows_of(table):
    """The rows of the profile: {name: [number, ...]}."""
    rows = {}
    for line in table[1:]:
        name, numbers = re.fullmatch(r"(.*?\S)((?:\s+-?[\d.]+)+)", line).groups()
        assert name not in rows
        rows[name] = [float(number) for number in numbers.split()]
    return rows


class Clock:
    """Stands in for the clock and for the training step, which takes as long as it says here, in seconds."""

    def __init__(self, *durations):
        self.durations, self.now = list(durations), 0.0

    def perf_counter(self):
        return self.now

    def step(self, x):
        self.now += self.durations.pop(0)


@pytest.mark.parametrize("flags", ["", "--profile"])
def test_images_per_second_are_those_of_the_median_step_after_the_warm_up(measured, monkeypatch, flags):
    clock = Clock(1000, 1000, 1000, 2, 1, 50, 4, 0.5)  # of which nothing is spent inside any layer
    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(Training, "step", lambda self, x: clock.step(x))
    table, result = measured(f"--batch-size 10 --steps 5 --threads 1 {flags}")
    assert result["images_per_second"] == 10 / 2
    assert clock.durations == []
    assert rows_of(table)["all"] == [1150] if flags else table == []  # milliseconds an image


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_profile_has_a_row_for_every_layer_and_its_rows_add_up(likelihood, measured, monkeypatch):
    taken, step, threads = [], Training.step, 2 if backend.NAME == "numpy" else 1
    monkeypatch.setattr(Training, "step", lambda self, x: taken.append((self.likelihood, x)) or step(self, x))
    table, result = measured(f"--batch-size 4 --steps 2 --threads {threads} --profile --likelihood {likelihood}")
    for used, x in taken:
        assert (used.name, x.shape, x.dtype.name) == (likelihood, (4, 64, 64, 3), "float32")
        assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1
    assert {name: type(value) for name, value in result.items()} == KEYS
    assert (result["batch_size"], result["threads"]) == (4, threads)
    assert table[0].split()[-2:] == ["forward", "backward"]
    assert len({len(line) for line in table[:-4]}) == 1, "columns are below each other"
    rows, model = rows_of(table), VAE(**benchmark.REFERENCE)
    layers = [f"{part}.{number} {layer!r}" for part in ("encoder", "decoder")
              for number, layer in enumerate(itertools.chain(*(path.layers for path in getattr(model, part).paths)))]
    assert list(rows)[: len(layers)] == layers
    for name in layers:  # of which some take less than what is printed
        assert len(rows[name]) == 2
        assert min(rows[name]) > 0 or not ("Conv" in name or "Dense" in name), name
    *parts, (last, (whole,)) = rows.items()
    assert last == "all"
    assert {len(numbers) for name, numbers in parts[len(layers) :]} == {1}
    numbers = [number for _, numbers in parts for number in numbers]
    assert abs(sum(numbers) - whole) <= 0.0005 * (len(numbers) + 1) + 1e-9, "each is rounded to 0.001"
    assert min(numbers) >= 0, {name: numbers for name, numbers in parts if min(numbers) < 0}


@pytest.mark.parametrize("arguments", ["--batch-size 0", "--batch-size many", "--steps 0", "--steps -1", "--threads 0",
                                       "--threads 17", "--threads 1.5", "--likelihood poisson", "--profile yes",
                                       "--bath-size 4"])
def test_wrong_usage_is_one_line_and_status_2(arguments, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "VAE", lambda: pytest.fail("nothing may be measured"))
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments.split())
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith("error: ")
    assert captured.err.endswith("; see python -m vae_np.benchmark --help\n")
