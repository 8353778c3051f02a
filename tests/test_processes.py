"""Several processes compute what one does, and whatever ends one of them ends all: started by mpiexec, where it is."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_dataset
from test_interruption import FLAGS, KILLS, LESSON, PROGRAM, finish, saved, trainer_for

from tools import machines
from tools.machines import launcher
from vae_np.backend import NAME, to_cpu, to_device
from vae_np.disk.dataset import Dataset
from vae_np.errors import InputError
from vae_np.fast import processes, voices
from vae_np.fast.cupy_setup import take_own_gpu
from vae_np.losses import Bernoulli
from vae_np.run.checkpoint import load
from vae_np.run.trainer import Trainer
from vae_np.train import Settings
from vae_np.vae import VAE

PATIENCE = 40  # seconds after which a test ends what it has started
try:
    LAUNCHER = launcher(2)[0]
except InputError:
    LAUNCHER = None
with_mpi = pytest.mark.skipif(not LAUNCHER, reason='needs mpi4py and mpiexec: pip install -e ".[mpi]"')


def start(room, *programs):
    """Start [(how many processes, the program's arguments), ...] together, in a folder."""
    command = [LAUNCHER]
    for count, program in programs:
        command += ["-n", str(count), sys.executable, *map(str, program), ":"]
    process = subprocess.Popen(command[:-1], cwd=room, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.timer = threading.Timer(PATIENCE, process.kill)  # and mpiexec takes all others with it
    process.timer.start()
    return process


def end(process):
    """The status of mpiexec, what was printed, and the lines that say why, once all that it started are gone."""
    output, errors = process.communicate()
    assert process.timer.is_alive(), "it hung"
    process.timer.cancel()
    lines = [line.split("\r")[-1].strip() for line in errors.split("\n")]
    for pid in re.findall(r"^pid (\d+)", output, re.MULTILINE):
        assert is_gone(int(pid)), lines
    return process.returncode, output, [line for line in lines if line.startswith(("error", "interrupted", "Trace"))]


def follow(process, step):
    """Wait until the first process says that it has taken this step; return the PIDs that were said before."""
    pids = []
    for line in process.stdout:
        word, number, *_ = [*line.split(), "", ""]
        if word == "pid":
            pids.append(int(number))
        if word == "step" and int(number) >= step:
            return pids
    raise AssertionError("it ended before")


def is_gone(pid):
    """Whether a process has ended, or does within seconds."""
    for _ in range(50):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            time.sleep(0.1)
            continue
        return True
    return False


# The curve.

CURVES = """
import sys
import numpy as np
sys.path[:0] = {path}
from test_processes import curves
from vae_np.fast import processes, voices
from vae_np.fast.cores import available_cores
from vae_np.vae import VAE

cores, processes.ROUND = available_cores(), 32
assert processes.world().size == {count} and processes.world().rank == voices.rank()
assert available_cores() == max(1, cores // {count})
voices.speak_as_one()
np.savez(str(voices.rank()), **curves())
processes.leave(VAE(16, (4,), 2))
assert available_cores() == cores
print("alone")
"""
WAYS = {"bernoulli": {"likelihood": "bernoulli", "free_bits": 0.05}, "gaussian": {"likelihood": "gaussian"},
        "calibrated": {"free_bits": 0.05}, "again": {"free_bits": 0.05}, "as they are": {"mirror": False}}


def curves():
    """Everything that a training brings about, for each of WAYS: the last of its batches has one image."""
    found, faces = {}, Dataset("faces")
    for name, settings in WAYS.items():
        model = VAE(16, (6, 8), latent_dim=5)
        trainer = Trainer(model, faces.split("train"), faces.split("validation"),
                          Settings(epochs=2, batch_size=10, **settings), faces.description)
        rows = [trainer.train_epoch(), trainer.train_epoch()]
        found[name] = [value for row in rows for key, value in row.items() if value and key != "images_per_second"]
        found[f"{name} values"], found[f"{name} progress"] = to_cpu(model.values), trainer.progress[-1]
    return found


@with_mpi
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_compute_the_curve_of_one(tmp_path, monkeypatch, count):
    write_dataset(tmp_path / "faces", train=81, validation=110)  # of which one process has a part less
    program = CURVES.format(path=[path for path in sys.path if path], count=count)
    status, output, lines = end(start(tmp_path, (count, ["-c", program])))
    assert (status, output.split("\n")[-2:], lines) == (0, ["alone", ""], [])
    monkeypatch.chdir(tmp_path)
    expected = curves()
    each = [np.load(f"{number}.npz") for number in range(count)]
    for name, one in expected.items():
        for several in each:
            np.testing.assert_array_equal(several[name], each[0][name], name)
        np.testing.assert_allclose(each[0][name], one, rtol=2e-5, atol=1e-6, err_msg=name)
    for what in ("", " values", " progress"):
        np.testing.assert_array_equal(each[0][f"calibrated{what}"], each[0][f"again{what}"])


# What ends one ends all.


@pytest.fixture
def room(tmp_path):
    write_dataset(tmp_path / "faces")
    return tmp_path


def lesson(*flags, rank=0, change="pass"):
    """The arguments of Python for lesson 03, with a change of the process of this rank. Each first says its PID."""
    change = f"""
from vae_np.fast import voices
print(f"pid {{os.getpid()}}\\n", end="", flush=True)  # in one piece
workers.available_cores = lambda: 1
when(trainer.checkpoint, "save", 1, lambda *args: print("written by", voices.rank(), file=sys.__stdout__, flush=True))
if voices.rank() == {rank}:
    {change}
"""
    return ["-c", PROGRAM.format(change=change), LESSON, *FLAGS, *map(str, flags)]


def assert_it_went_on(room, epochs):
    """Assert that a checkpoint, or what this process makes of it, is what an undisturbed training ends with."""
    path, dataset = room / "run" / "checkpoint.npz", Dataset(room / "faces")
    one, other = (saved(finish(trainer_for(dataset, start, epochs=epochs)), room / "end.npz") for start in (None, path))
    for name in ("values", "m", "v"):
        found, expected = (np.frombuffer(each[name][2], np.float32) for each in (other, one))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=name)
    for found, expected in zip(other["history"], one["history"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


GO_ON = "go on with: mpiexec -n 2 python lessons/03_train.py --resume --out run --prior standard --save-every 2"
KILLED = r"error: rank {} of 2 \(PID \d+ on .*\) was killed, or ended without a word; " + GO_ON
IN_STEP_8 = "when(workers.ParallelVAE, 'loss_and_gradient', 8, lambda self, x, eps, *rest: {})"
FAULTS = {  # the rank and what happens to it, the line, and the last step that is saved
    "killed": (1, "os.kill(os.getpid(), 9)", KILLED.format(1), 6),
    "the first killed": (0, "os.kill(os.getpid(), 9)", KILLED.format(0), 6),
    "SIGTERM": (1, "os.kill(os.getpid(), 15)", "interrupted by SIGTERM to rank 1: run/checkpoint.npz holds what was "
                f"done; {GO_ON}", 8),
    "an error": (1, "fail(OSError('unreadable'))", f"error: rank 1 of 2: unreadable; {GO_ON}", 6),
    "no number": (1, "eps.fill(np.nan)", "error: rank 0 of 2: rank 1 alone has a loss that is not finite; is its "
                  rf"machine in order\?; {GO_ON}", 6),
}  # fmt: skip


@with_mpi
@pytest.mark.parametrize("fault", FAULTS)
def test_what_ends_one_ends_all_with_one_line_and_one_alone_goes_on(room, fault):
    rank, change, line, step = FAULTS[fault]
    program = lesson("--epochs", 2, "--save-every", 2, rank=rank, change=IN_STEP_8.format(change))
    status, _, lines = end(start(room, (2, program)))
    assert status and len(lines) == 1 and re.fullmatch(line, lines[0]), (status, lines)
    assert load(room / "run" / "checkpoint.npz")[1]["step"] == step
    assert_it_went_on(room, epochs=2)


@with_mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_mpiexec_is_told_ends_all_with_one_line(room, number):
    process = start(room, (2, lesson("--epochs", 5000, "--save-every", 2)))
    follow(process, step=8)
    process.send_signal(number)
    status, _, lines = end(process)
    line = f"interrupted by {number.name} to rank 0: run/checkpoint.npz holds what was done; {GO_ON}"
    assert (status, lines) == (128 + number, [line])
    assert load(room / "run" / "checkpoint.npz")[1]["step"] >= 8


@with_mpi
def test_three_go_on_with_what_one_has_begun(room):
    trainer = trainer_for(Dataset(room / "faces"))
    trainer.train_epoch()
    trainer.save(room / "run" / "checkpoint.npz")
    status, output, lines = end(start(room, (3, lesson("--resume"))))
    assert (status, lines) == (0, []) and "in each of 3 processes" in output
    assert re.findall("written by .*", output) == ["written by 0"], "and not by others"
    assert len(load(room / "run" / "checkpoint.npz")[1]["history"]) == 2
    assert_it_went_on(room, epochs=2)


@with_mpi
@pytest.mark.parametrize(("flags", "line"), [
    (["--seed", 5], "error: rank 0 of 2: rank 1 has another seed than rank 0; start all with the same"),
    (["--data", "others"], "error: rank 0 of 2: rank 1 has another dataset than rank 0; start all with the same"),
    (["--data", "none"], "error: rank 1 of 2: none holds no prepared dataset (no dataset.json); make one with "
     "python -m data_tools.celeba, data_tools.pictures or data_tools.toy_faces"),
])  # fmt: skip
def test_processes_that_differ_are_refused(room, flags, line):
    write_dataset(room / "others", seed=1)
    status, _, lines = end(start(room, (1, lesson()), (1, lesson(*flags))))
    assert status and lines == [line]
    assert not (room / "run" / "checkpoint.npz").exists()


@with_mpi
@pytest.mark.slow
def test_killed_at_any_time_training_goes_on_with_any_number(room):
    epochs, path = 3 * (KILLS + 1), room / "run" / "checkpoint.npz"
    for number in range(KILLS + 1):
        count, step = random.randint(2, 3), 15 * number + random.randint(1, 15)
        process = start(room, (count, lesson("--epochs", epochs, "--save-every", 3, *["--resume"] * path.exists())))
        if number < KILLS:
            pids, what = follow(process, step), random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            time.sleep(random.uniform(0, 0.02))
            os.kill(random.choice(pids), what)
            begun = time.monotonic()
            status, _, lines = end(process)
            assert status and len(lines) == 1, (what, status, lines)
            assert time.monotonic() - begun < 10 and all(map(is_gone, pids))
    assert end(process)[::2] == (0, [])
    assert len(load(path)[1]["history"]) == epochs
    assert_it_went_on(room, epochs)


# Without mpiexec.


class Other:
    """Of two processes the first; the other has the same batch, and so the same sums."""

    rank, size = 0, 2

    def Allreduce(self, where, array):
        self.given = array
        array *= 2

    def Allgather(self, mine, everyone):
        everyone[...] = mine


@pytest.mark.parametrize("direct", [False, True])
def test_the_gradient_goes_through_the_host_unless_mpi_takes_arrays_of_the_device(monkeypatch, direct):
    model, waits = processes.SpreadVAE(16, (4,), 2), []
    x, eps = to_device(np.full((8, 16, 16, 3), 0.5, np.float32)), to_device(np.ones((8, 2), np.float32))
    expected = [float(term) for term in model.loss_and_gradient(x, eps, Bernoulli())], to_cpu(model.grads).copy()
    for name, value in {"comm": Other(), "MPI": SimpleNamespace(IN_PLACE=None), "direct": direct}.items():
        monkeypatch.setattr(processes, name, value)
    monkeypatch.setattr(processes, "synchronize", lambda: waits.append(to_cpu(model.grads).copy()))
    terms = model.loss_and_gradient(x, eps, Bernoulli())
    np.testing.assert_allclose([float(term) for term in terms], expected[0], rtol=1e-6)
    np.testing.assert_allclose(to_cpu(model.grads), expected[1], rtol=1e-4, atol=1e-4)
    assert (processes.comm.given is model.grads) == (direct or NAME != "cupy")
    assert len(waits) == direct, "MPI is not to add up what a kernel has still to write"


@pytest.mark.parametrize(("variables", "expected"), [
    ({}, (0, 0)), ({"PMI_SIZE": "4", "PMI_RANK": "3"}, (4, 3)),
    ({"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "2"}, (2, 1)),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}, (2, 1)),
    ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 0)), ({"SLURM_STEP_NUM_TASKS": "2"}, (0, 0))])  # fmt: skip
def test_how_many_were_started_and_which_this_is(monkeypatch, variables, expected):
    for name in ("PMI_SIZE", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (voices.started(), voices.rank()) == expected


@pytest.mark.parametrize(("before", "expected"), [(None, "1"), ("4,6", "6"), ("5", "5"), ("GPU-a,GPU-b", "GPU-b")])
def test_each_process_of_a_machine_sees_a_gpu_of_its_own(monkeypatch, before, expected):
    for name, value in {"PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "CUDA_VISIBLE_DEVICES": before or "none"}.items():
        monkeypatch.setenv(name, value)
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    take_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_without_mpiexec_there_is_no_world_and_mpi_is_not_imported():
    assert processes.world() is None
    assert "mpi4py" not in sys.modules


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for module in (processes, machines):
        monkeypatch.setattr(module, "NAME", "numpy")
    monkeypatch.setattr(machines.shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.setenv("PMI_SIZE", "2")
    for ask in (processes.world, lambda: launcher(2)):
        with pytest.raises(InputError, match=r'install an MPI and mpi4py: pip install -e "\.\[mpi\]"'):
            ask()


@with_mpi
def test_an_mpiexec_of_another_mpi_is_refused():
    code = "from vae_np.fast import processes; processes.world()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PMI_SIZE": "2"}, timeout=PATIENCE,
                          capture_output=True, text=True)
    assert "mpiexec has started 2 processes, and mpi4py finds 1; take the mpiexec of its own MPI, MPICH" in done.stderr
