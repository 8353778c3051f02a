"""Lesson 11 as a reader runs it: alone, when it starts two processes, and under mpiexec; and its parts."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_dataset
from test_lessons import LESSONS, here, pictures_in, succeed

from tools import machines
from vae_np.errors import InputError

assert here  # a fixture
LESSON = "11_machines.py"
# How far a sum of float64 may be from another in another order, relative to its largest number, as printed.
ROUNDING = 2e-12
SUMS = r"in the ring each sends ([\d.]+) of its buffer\.\n.* from MPI's by (\S+), and .* whole batch by (\S+)\.\n"


def installed():
    """Whether there is an MPI to start processes with."""
    try:
        return bool(machines.launcher(2))
    except InputError:
        return False


needs_mpi = pytest.mark.skipif(not installed(), reason='needs pip install -e ".[mpi]"')


def check_sums(output, expected):
    """The ring's sum and MPI's are the gradient of the whole batch, and each process sent as much as a ring needs."""
    (sent, *differences), = re.findall(SUMS, output)
    assert sent == expected
    assert all(float(difference) <= ROUNDING for difference in differences)


def check_model(output):
    """What the last two tables say of a network of 1 Gbit/s is what their formulas say, up to the digits printed."""
    (fixed, image), = re.findall(r"^A gradient here: ([\d.]+) ms, and ([\d.]+) ms an image$", output, re.MULTILINE)
    fixed, image = float(fixed) / 1e3, float(image) / 1e3
    first, second = (line.replace(",", "").split() for line in re.findall("^1 Gbit/s +(.*)$", output, re.MULTILINE))
    half, quickest, speedup, *shares = (float(cell.rstrip("%")) for cell in first)
    size, latency, bandwidth = 10_498_636, 30e-6, 125e6

    def wait(n):
        return 2 * (n - 1) * latency + 2 * (n - 1) / n * size / bandwidth

    took = {n: fixed + 1024 * image / n + wait(n) for n in 2 ** np.arange(11)}
    assert half == max(n for n in took if took[1] / took[n] >= n / 2)
    assert took[quickest] == pytest.approx(min(took.values()), rel=0.02)
    assert speedup == pytest.approx(took[1] / took[quickest], rel=0.03)
    compute = fixed + 32 * image
    assert shares == pytest.approx([100 * compute / (compute + wait(n)) for n in (2, 16, 128, 1024)], abs=1)
    hidden = min(2 / 3 * compute, wait(16))
    assert float(second[0].rstrip("%")) == pytest.approx(100 - 100 * hidden / (compute + wait(16)), abs=1)


@needs_mpi
def test_the_lesson_starts_two_processes(tmp_path):
    write_dataset(tmp_path / "faces", train=64)  # two batches of 32
    output = succeed(LESSON, "--data", "faces", "--epochs", 3, "--seconds", 0.001, cwd=tmp_path)
    halves, quarters, wrong = re.findall(r"^    (?:the mean|1/4) of .* (\S+)$", output, re.MULTILINE)
    assert max(float(halves), float(quarters)) <= ROUNDING < 1e-3 < float(wrong)
    check_sums(output, "1.000")
    losses = re.findall(r"^ +(\d+) +(\d+) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+)$", output, re.MULTILINE)
    assert [(int(batch), int(steps)) for batch, steps, *_ in losses] == [(32, 6), (64, 3), (128, 3), (256, 3), (512, 3)]
    assert len(set(losses[0][2:])) == 1, "one training"
    assert len(set(losses[1][2:])) == 3
    check_model(output)
    out = tmp_path / "runs/11_machines"
    assert pictures_in(out) == {"allreduce.png", "batches.png", "machines.png"}
    found = json.loads((out / "allreduce.json").read_text(encoding="utf-8"))
    assert len(found["sizes"]) == len(found["ring"]) == len(found["mpi"])
    assert min(found["model"]) > 0


@needs_mpi
def test_under_mpiexec_it_measures_with_all_processes_and_ends(tmp_path):
    command = [*machines.launcher(3), sys.executable, LESSONS / LESSON, "--out", "out", "--seconds", "0.001"]
    result = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                            check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n3 processes sum up") == 1, "one of them speaks for all"
    check_sums(result.stdout, "1.333")  # pieces of a ring of three are not of one length
    assert "A gradient here" not in result.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["allreduce.json"]


def test_without_mpi_one_line_comes_before_all_else(tmp_path, here, monkeypatch):
    def missing(count):
        raise InputError("no MPI here")

    monkeypatch.setattr(machines, "launcher", missing)
    assert here(LESSON, tmp_path) == (1, "", "error: no MPI here\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [2, 5])
def test_the_fit_finds_the_figures_of_its_own_model(n):
    sizes = np.array([8, 1e6, 1e12])
    assert machines.sum_seconds(n, 1e6, 0, 1e6) == pytest.approx(2 * (n - 1) / n), "what a ring moves"
    figures = machines.fit(n, sizes, machines.sum_seconds(n, sizes, 3e-6, 2e9))
    assert figures == pytest.approx((3e-6, 2e9), rel=1e-2)


def test_processes_that_fail_are_one_line(capfd):
    with pytest.raises(InputError, match=r"ended with status 3; what they said is above, and the command was: .*py"):
        machines.start([sys.executable, "-c", "print('said'); raise SystemExit(3)"])
    assert capfd.readouterr().out == "said\n"


def test_a_sum_of_one_process_is_refused():
    class World:
        rank, size = 0, 1

    with pytest.raises(InputError, match="mpiexec -n 2"):
        machines.measure(World, None, None, 64, None, 1.0)


def test_the_least_time_is_taken(monkeypatch):
    clock = iter(np.cumsum([0, 5, 0, 2, 0, 4]).tolist())
    monkeypatch.setattr(machines.time, "perf_counter", lambda: next(clock))
    assert machines.fastest(10, int) == 2
