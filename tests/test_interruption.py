"""Training that is killed, interrupted or fails goes on where it was, with the very bits of a run that was not.

VAE_KILLS says how often the slow test kills training, by default six times.
"""

import contextlib
import gc
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset

from vae_np import VAE
from vae_np.backend import NAME, to_cpu
from vae_np.disk.dataset import Dataset
from vae_np.disk.files import hold
from vae_np.run import checkpoint
from vae_np.run import trainer as train_module
from vae_np.run.trainer import Trainer
from vae_np.train import Settings

KILLS = int(os.environ.get("VAE_KILLS", "6"))
LESSON = Path(__file__).parent.parent / "lessons" / "03_train.py"
STEPS = 5  # of an epoch: 24 images in batches of 5
FLAGS = ["--data", "faces", "--out", "run", "--batch-size", "5", "--channels", "6", "8", "--latent-dim", "5",
         "--prior", "standard"]
PATIENCE = 120  # seconds after which a process hangs
TRACED = train_module.__file__  # whose every place is interrupted
signals = pytest.mark.skipif(os.name != "posix", reason="Windows ends a process that it sends a signal to")


def trainer_for(dataset, path=None, threads=2, **settings):
    """A new trainer, or one that goes on from a checkpoint."""
    settings = Settings(**{"epochs": 2, "batch_size": 5, **settings})
    rest = dataset.split("train"), dataset.split("validation"), settings, dataset.description, threads
    return Trainer.resume(path, *rest) if path else Trainer(VAE(16, (6, 8), latent_dim=5), *rest)


def finish(trainer, after_step=lambda: None):
    while trainer.epoch < trainer.settings.epochs:
        trainer.train_epoch(after_step)
    return trainer


def stop_after(step, trainer):
    """Train to the end of a step, or of training; return the trainer."""
    def after_step():
        if trainer.adam.step == step:
            raise KeyboardInterrupt
    with contextlib.suppress(KeyboardInterrupt):
        finish(trainer, after_step)
    return trainer


def saved(trainer, path):
    """All that a checkpoint of the trainer holds, but for what depends on the clock."""
    trainer.save(path)
    return contents(path)


def contents(path):
    arrays, info = checkpoint.load(path)
    info.pop("prior", None)  # which the lesson adds at its end
    for row in info["history"]:
        assert row.pop("images_per_second") >= 0  # 0 where all steps were done before it was stopped
    return info | {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def assert_same(one, other, where=""):
    """Assert that contents are the same, and name what is not."""
    assert [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)] == [], where


# Interrupted, in this process.


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 2)  # steps that wait to be fetched, and others that do not
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which would take most of the time


@pytest.mark.parametrize("likelihood", ["bernoulli", "calibrated"])
def test_stopped_after_any_steps_it_ends_with_the_same_bits(ramps, tmp_path, quick, likelihood):
    expected, path = saved(finish(trainer_for(ramps, likelihood=likelihood)), tmp_path / "b.npz"), tmp_path / "a.npz"
    for stride in range(1, 2 * STEPS + 1):
        trainer = trainer_for(ramps, likelihood=likelihood)
        for step in range(stride, 2 * STEPS + 1, stride):
            stopped = saved(stop_after(step, trainer), path)
            trainer = trainer_for(ramps, path, likelihood=likelihood)
            assert trainer.adam.step == step
            assert_same(saved(trainer, path), stopped)
        assert_same(saved(finish(trainer), path), expected)


@contextlib.contextmanager
def interruption(tried):
    """Press Ctrl-C at a place of TRACED where Python looks for signals, the first that is not among `tried`.

    Those are: each new line, a call of a function in Python, the return of one in C.
    """
    count = len(tried)

    def trace(frame, event, argument):
        what = frame.f_code.co_name if event == "call" else argument.__name__ if event == "c_return" else ""
        if event == "call" and frame.f_code.co_filename != TRACED:
            frame = frame.f_back
        if frame.f_code.co_filename != TRACED or len(tried) > count:
            return None
        place = (frame.f_code.co_name, frame.f_lineno, event, what)
        if event in ("line", "call", "c_return") and place not in tried:
            tried.append(place)
            signal.raise_signal(signal.SIGINT)
        return trace

    gc.disable()  # Python loses a Ctrl-C that comes while it collects what other tests left, in a destructor
    sys.settrace(trace)
    sys.setprofile(trace)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        sys.settrace(None)
        sys.setprofile(None)
        gc.enable()


def test_interrupted_anywhere_it_ends_with_the_same_bits(ramps, tmp_path, quick):
    settings = {"likelihood": "calibrated", "batch_size": 8, "threads": 1}
    first, path = tmp_path / "first.npz", tmp_path / "a.npz"
    trainer = trainer_for(ramps, **settings)
    trainer.train_epoch()
    trainer.save(first)
    expected, tried, right = saved(finish(trainer), path), [], []
    while not tried or tried[-1] != "nowhere":
        trainer = trainer_for(ramps, first, **settings)
        with interruption(tried):
            trainer.train_epoch()
            tried.append("nowhere")
        state = (tried[-1][0], saved(trainer, path))
        if state not in right:  # as most places of a function are
            for ongoing in (trainer_for(ramps, path, **settings), trainer):  # the last as in a notebook
                assert_same(saved(finish(ongoing), path), expected, tried[-1])
            right.append(state)
    assert len(tried) > 100, "too little was traced"


# In processes of their own.

# The lesson without its pictures, which take long. It says what it does, and `when` puts something before or after a
# function's call of this number, or after each.
PROGRAM = """
import itertools, os, runpy, signal, sys, threading, time, zipfile
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import numpy as np
from tools import figures
from vae_np import vae
from vae_np.fast import arrays, workers
from vae_np.run import trainer
from vae_np.study import pictures

def when(owner, name, number, act, after=False):
    def called(*args, **kwargs):
        mine = number in (None, next(calls))
        if mine and not after:
            act(*args)
        result = original(*args, **kwargs)
        if mine and after:
            act(*args)
        return result

    original, calls = getattr(owner, name), itertools.count(1)
    setattr(owner, name, called)

def fail(error):
    raise error

def ctrl_c(*args):
    signal.raise_signal(signal.SIGINT)

figures.plot_losses = figures.plot_directions = pictures.save = lambda path, *args, **kwargs: Path(path).touch()
workers.available_cores = lambda: 2
when(trainer.Trainer, "step", None, lambda self, x: print("step", self.adam.step, flush=True), after=True)
when(trainer.Trainer, "save", None, lambda *args: print("saved", flush=True), after=True)
{change}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def room(tmp_path):
    write_dataset(tmp_path / "faces")
    return tmp_path


def start(room, *flags, change=""):
    """Start lesson 03 in a room with faces, to write to "run" there, after a change of the program."""
    command = [sys.executable, "-c", PROGRAM.format(change=change), LESSON, *FLAGS, *map(str, flags)]
    return subprocess.Popen(command, cwd=room, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process, event=None, step=0, action=None):
    """Wait for the end of a process; call action() when it first says "event" after this step or a later one.

    Returns its status, the lines that it printed, and those that a terminal would show of its errors: tqdm goes back to
    the start of its line and wipes it.
    """
    timer, output = threading.Timer(PATIENCE, process.kill), []
    timer.start()
    try:
        for line in process.stdout:
            output.append(line.decode().rstrip())
            if output[-1].split(" ")[0] == event and last(output, "step") >= step:
                event = None
                action()
        errors, status = process.stderr.read().decode().replace("\r\n", "\n").split("\n"), process.wait()
    finally:
        timer.cancel()
        process.kill()
    return status, output, [line for line in (line.split("\r")[-1].strip() for line in errors) if line]


def last(output, word):
    """The number beside the last of these words at the start of a line, 0 if there is none."""
    return next((int(line.split()[1]) for line in reversed(output) if line.startswith(word + " ")), 0)


def step_saved(room):
    """The step of the one checkpoint, whole or not, in the lesson's folder."""
    assert [entry.name for entry in (room / "run").iterdir() if "checkpoint" in entry.name] == ["checkpoint.npz"]
    return checkpoint.load_model(room / "run" / "checkpoint.npz")[2]["step"]


# As a slow disk is: once for a file, and once for its folder when it is renamed.
SLOW_DISK = "when(os, 'fsync', None, lambda file: (print('syncing', flush=True), time.sleep(0.002)))"


@pytest.mark.parametrize("kills", [1, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_killed_at_any_time_training_ends_with_the_bits_of_a_run_that_was_not(room, kills):
    epochs, path = 2 * (kills + 1), room / "run" / "checkpoint.npz"
    flags = ["--epochs", epochs, "--save-every", 3, "--likelihood", "calibrated"]
    said = 0
    for number in range(kills + 1):
        # One in six before there is a checkpoint, which is after step 3, and of the others one in ten steps, half of
        # them while something is written. A step takes a few milliseconds.
        event, step, delay = "step", 1, 0
        if number >= math.ceil((kills - 1) / 6):
            event, step = ("step", "syncing")[number % 2 == 0], 2 * STEPS * number + random.randint(1, STEPS)
            delay = random.uniform(0, 0.01 if event == "step" else 0.005)
        process = start(room, *flags, *["--resume"] * path.exists(), change=SLOW_DISK)

        def kill(process=process, delay=delay):
            time.sleep(delay)
            process.kill()

        status, output, errors = end(process, event if number < kills else None, step, kill)
        killed = -signal.SIGKILL if os.name == "posix" else 1
        assert status == (killed if number < kills else 0), f"start {number}, to be killed at {event} {step}: {errors}"
        if "saved" in output:
            said = last(output[: len(output) - output[::-1].index("saved")], "step")
        assert path.exists() or not said
        if path.exists():
            _, _, info = checkpoint.load_model(path)
            assert info["step"] >= said, "what was said to be saved is"
            assert len(info["history"]) >= last(output, "epoch"), "what was said to be done is saved"
    straight = finish(trainer_for(Dataset(room / "faces"), epochs=epochs, likelihood="calibrated"))
    assert_same(saved(straight, room / "straight.npz"), contents(path))
    assert {entry.name for entry in path.parent.iterdir()} - {".lock"} == {
        "checkpoint.npz", "history.csv", "losses.png", "progress.png", "directions.png"}  # fmt: skip
    assert len((path.parent / "history.csv").read_text(encoding="utf-8").splitlines()) == 1 + epochs


def test_what_was_killed_after_its_last_save_is_made_up_for_when_resumed(room):
    change = "when(figures, 'write_history', 1, lambda *args: os._exit(9))"
    status, output, lines = end(start(room, "--epochs", 1, change=change))
    assert (status, last(output, "step")) == (9, STEPS), lines
    status, output, lines = end(start(room, "--resume"))
    assert (status, last(output, "step")) == (0, 0), lines
    assert "nothing is left to do; give --epochs 2 to train on" in output
    assert (room / "run" / "history.csv").is_file()


@signals
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_lets_the_step_end_saves_and_says_how_to_go_on(room, number, status):
    process = start(room, "--epochs", 5000, "--save-every", 2)

    def stop():
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(getattr(signal, number))

    ended, output, lines = end(process, "saved", 2, stop)
    assert (ended, lines) == (status, [GO_ON])
    step = step_saved(room)
    assert step == last(output, "step"), "all steps that were done are saved"
    dataset = Dataset(room / "faces")
    resumed = trainer_for(dataset, room / "run" / "checkpoint.npz", epochs=5000)
    straight = trainer_for(dataset, epochs=5000)
    for trainer in (resumed, straight):  # a little further: what was saved may or may not include the end of an epoch
        stop_after(step + 3, trainer)
    assert_same(saved(straight, room / "straight.npz"), saved(resumed, room / "resumed.npz"))


PATH = Path("run/checkpoint.npz")
GO_ON = (f"interrupted: {PATH} holds what was done; go on with: python lessons/03_train.py --resume --out run "
         "--prior standard --save-every 2")
AS_IT_WAS = "the last checkpoint is as it was; try a lower learning rate"
# The lesson shows Adam with 4 steps of its own, so this is between the update of the parameters and the end of step 4,
# where there is half a step.
IN_STEP_4 = "when(arrays.FastAdam, 'update', 4 + 4, {}, after=True)"
# While step 4 is saved: step 2 was, with two calls of fsync and one of all else.
WHILE_SAVING = "when({}, lambda *args: {})"
HALF_A_FILE = "open(args[0], 'wb').write(args[1][:99]), fail(OSError(28, 'No space'))"
# In step 3, one of two threads fails and the other is slow.
IN_A_THREAD = ("when(vae.VAE, 'loss_and_gradient', 5, lambda *args: fail({})); "
               "when(vae.VAE, 'loss_and_gradient', 6, lambda *args: time.sleep(0.3))")
# Where a KeyboardInterrupt becomes a ValueError of ZipFile.close, is swallowed, or leaves a lock that nobody releases.
IN_A_FILE = "when(zipfile.ZipFile, 'open', 8, ctrl_c, after=True)"
IN_A_BAR = "when(trainer.tqdm, '__del__', 1, ctrl_c)"
IN_A_LOCK = """
once = iter([True])
act = lambda *args: threading.current_thread() is threading.main_thread() and next(once, False) and ctrl_c()
when(trainer, 'evaluate', 1, lambda *args: when(threading.Condition, '__enter__', None, act, after=True))
"""
ENDS = {  # the change, the status, the line that is shown, the last step, and the last one that is saved
    "Ctrl-C twice": (
        IN_STEP_4.format("lambda *args: (ctrl_c(), print('the first waits', flush=True), ctrl_c())"), 130, GO_ON, 3, 2),
    "Ctrl-C while a file is written": (IN_A_FILE, 130, GO_ON, 4, 4),
    "Ctrl-C as a progress bar goes": (IN_A_BAR, 130, GO_ON, 5, 5),
    "Ctrl-C while threads are waited for": (IN_A_LOCK, 130, GO_ON, 5, 5),
    "Ctrl-C, and again while that saves": (
        IN_STEP_4.format("ctrl_c") + ";" + WHILE_SAVING.format("os, 'fsync', 3", "ctrl_c()"), 130, "interrupted", 4, 2),
    **{kind: (WHILE_SAVING.format(call, what), 1, f"error: {line}", 4, 2) for kind, call, what, line in (
        ("full disk", "Path, 'write_bytes', 2", f"({HALF_A_FILE})", f"[Errno 28] No space: {str(PATH)!r}"),
        ("full disk, noticed late", "os, 'fsync', 3", "fail(OSError(28, 'No'))", f"[Errno 28] No: {str(PATH)!r}"),
        ("broken disk", "os, 'replace', 2", "fail(OSError(5, 'Broken'))", f"[Errno 5] Broken: {str(PATH)!r}"),
        ("read-only", "Path, 'write_bytes', 2", "fail(OSError(13, 'Denied', 'run/x'))", "[Errno 13] Denied: 'run/x'"),
        ("no memory", "np, 'savez', 2", "fail(MemoryError('out of memory'))", "out of memory"))},
    "bug in a thread": (IN_A_THREAD.format("RuntimeError('a thread broke')"), 1,
                        "error: this is a bug: RuntimeError: a thread broke; VAE_DEBUG=1 shows where", 2, 2),
    "images unreadable in a thread": (IN_A_THREAD.format("OSError('unreadable')"), 1, "error: unreadable", 2, 2),
    "loss not finite": (
        "when(workers.ParallelVAE, 'loss_and_gradient', 8, lambda self, x, eps, *rest: eps.fill(np.nan))", 1,
        f"error: epoch 2, step 8: the reconstruction is nan; {AS_IT_WAS}", 8, 6),
    "parameters not finite": (IN_STEP_4.format("lambda adam, *rest: adam.values.fill(np.nan)"), 1,
                              f"error: epoch 1, step 4: some parameters are not finite; {AS_IT_WAS}", 4, 2),
}


@pytest.mark.parametrize("end_of_it", ENDS)
def test_what_ends_training_in_one_line_leaves_the_last_checkpoint(room, end_of_it):
    change, *expected, saved_step = ENDS[end_of_it]
    if (re.search("fsync|ctrl_c", change) and os.name != "posix") or ("thread" in end_of_it and NAME != "numpy"):
        pytest.skip("Windows has neither fsync of a folder nor signals, and a GPU one thread")
    status, output, lines = end(start(room, "--epochs", 2, "--save-every", 2, change=change))
    assert [status, *lines, last(output, "step")] == expected
    assert "the first waits" in output or end_of_it != "Ctrl-C twice"
    assert step_saved(room) == saved_step
    dataset, path = Dataset(room / "faces"), room / "run" / "checkpoint.npz"
    straight = stop_after(saved_step, trainer_for(dataset))
    assert_same(saved(straight, room / "a.npz"), contents(path))
    assert_same(saved(finish(straight), room / "a.npz"), saved(finish(trainer_for(dataset, path)), room / "b.npz"))


def test_a_folder_is_held_by_one_training_until_that_is_gone(room):
    first = start(room, "--epochs", 5000, "--save-every", 1)

    def try_others():
        for flags in ([], ["--resume"]):
            line = "error: another training is writing to run; wait for it, or give another --out"
            status, _, lines = end(start(room, *flags))
            assert (status, lines) == (1, [line])
        assert first.poll() is None, "the first goes on"
        first.kill()

    end(first, "saved", 2, try_others)
    (room / "run" / ".checkpoint.partial-1.npz").touch()  # as it may have left
    hold(room / "run").release()
    assert step_saved(room) >= 2, "nothing was set aside, and what is left of a killed program is removed"


def test_a_second_run_keeps_what_earlier_ones_left_and_each_starts_with_the_weights_of_its_seed(room):
    path, left = room / "run" / "checkpoint.npz", []
    for seed in range(3):
        status, output, lines = end(start(room, "--epochs", 1, "--seed", seed, "--lr", 1e-12))
        assert (status, lines) == (0, [])
        arrays, _ = checkpoint.load(path)
        np.testing.assert_allclose(arrays["values"], to_cpu(VAE(16, (6, 8), 5, seed=seed).values), atol=1e-6)
        left.append(path.read_bytes())
    assert f"the checkpoint.npz of an earlier run is now {Path('run/checkpoint-2.npz')}" in output
    assert [path.with_name(f"checkpoint-{number}.npz").read_bytes() for number in (1, 2)] == left[:2]
    assert len(set(left)) == 3
