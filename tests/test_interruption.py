"""Training that is killed, interrupted or fails goes on where it was, with the very bits of a run that was not.

VAE_KILLS says how often the tests kill training, by default three times.
"""

import contextlib
import copy
import errno
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset

from vae_np import VAE, optim
from vae_np.backend import to_cpu
from vae_np.disk.dataset import Dataset
from vae_np.disk.files import hold
from vae_np.errors import TrainingError
from vae_np.fast.workers import Workers
from vae_np.run import checkpoint, command
from vae_np.run import trainer as train_module
from vae_np.run.trainer import Settings, Trainer

KILLS = int(os.environ.get("VAE_KILLS", "3"))
LESSONS = Path(__file__).parent.parent / "lessons"
STEPS = 5  # of an epoch: 24 images in batches of 5
MODEL = {"image_size": 16, "channels": (6, 8), "latent_dim": 5}
FLAGS = ["--batch-size", "5", "--channels", "6", "8", "--latent-dim", "5"]
PATIENCE = 120  # seconds after which a process hangs
signals = pytest.mark.skipif(os.name != "posix", reason="Windows ends a process that it sends a signal to")


def trainer_for(dataset, path=None, threads=2, **settings):
    """A new trainer, or one that goes on from a checkpoint."""
    settings = Settings(**{"epochs": 2, "batch_size": 5, **settings})
    return Trainer.resume(path, dataset, settings, threads) if path else Trainer(VAE(**MODEL), dataset, settings,
                                                                                 threads)


def finish(trainer, after_step=lambda: None):
    while trainer.epoch < trainer.settings.epochs:
        trainer.train_epoch(after_step)
    return trainer


def saved(trainer, path):
    """All that a checkpoint of the trainer holds, but for what depends on the clock."""
    trainer.save(path)
    return contents(path)


def contents(path):
    arrays, info = checkpoint.load(path)
    for row in info["history"]:
        assert row.pop("images_per_second") >= 0  # 0 where all steps were done before it was stopped
    return arrays, info


def assert_same(one, other):
    for name, array in one[0].items():
        np.testing.assert_array_equal(array, other[0][name], name)
        assert array.dtype == other[0][name].dtype, name
    assert one[0].keys() == other[0].keys()
    assert one[1] == other[1]


# Killed.

# As lesson 03 trains, but quick to start, and it says what it does.
TRAIN = """
import os, sys, time
from pathlib import Path
from vae_np import VAE
from vae_np.disk.dataset import Dataset
from vae_np.disk.files import hold
from vae_np.run.trainer import Settings, Trainer

path, epochs = Path(sys.argv[2]), int(sys.argv[3])
lock = hold(path.parent)
dataset, settings = Dataset(sys.argv[1]), Settings(epochs=epochs, batch_size=5, likelihood="calibrated")
trainer = (Trainer.resume(path, dataset, settings, threads=2) if path.exists()
           else Trainer(VAE(16, (6, 8), 5), dataset, settings, threads=2))

def slow(sync):  # as a slow disk is: once for a file, and once for its folder when it is renamed
    def fsync(file):
        print("syncing", trainer.adam.step, flush=True)
        time.sleep(0.002)
        sync(file)
    return fsync

os.fsync = slow(os.fsync)

def save():
    trainer.save(path)
    print("saved", trainer.adam.step, flush=True)

def after_step():
    print("step", trainer.adam.step, flush=True)
    if trainer.adam.step % 3 == 0:
        save()

while trainer.epoch < epochs:
    trainer.train_epoch(after_step)
    save()
"""


def start(arguments, cwd):
    # Not as text, in which each return of tqdm's to the start of the line would be a new line.
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def end(process):
    """Wait for the end of a process; return its status, output and the lines that a terminal would show of its errors.

    tqdm goes back to the start of its line and wipes it.
    """
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    output, errors = (text.decode().replace("\r\n", "\n") for text in (output, errors))
    lines = [line.split("\r")[-1] for line in errors.split("\n")]
    return process.returncode, output, [line for line in lines if line.strip()]


def kill_at(process, event, step, delay):
    """Kill a process that runs TRAIN `delay` seconds after an event of a step, or of a later one.

    Returns the last step that it said was saved, its status and its errors.
    """
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    last = 0
    for line in process.stdout:
        word, number = line.decode().split()
        if word == "saved":
            last = int(number)
        if word == event and int(number) >= step:
            time.sleep(delay)
            process.kill()
            event = None  # what is left to read was written before
    timer.cancel()
    status, _, errors = end(process)
    return last, status, errors


def test_killed_at_any_time_training_ends_with_the_bits_of_a_run_that_was_not(tmp_path):
    dataset = write_dataset(tmp_path / "faces")
    epochs = 2 * (KILLS + 1)
    path = tmp_path / "run" / "checkpoint.npz"
    early = while_saving = 0
    early_kills = -(-KILLS // 6)
    for number in range(KILLS):
        # Every sixth before there is a checkpoint, which is after step 3, and of the others one in ten steps, half of
        # them while it is saved. A step takes a few milliseconds.
        event, step, delay = "step", 1, 0
        if number >= early_kills:
            step, delay = 2 * STEPS * number + random.randint(1, STEPS), random.uniform(0, 0.01)
            if number % 2:
                event, delay = "syncing", random.uniform(0, 0.005)
        before = set(path.parent.glob(".*partial*")) if number else set()
        process = start(["-c", TRAIN, dataset.folder, path, epochs], tmp_path)
        last, status, errors = kill_at(process, event, step, delay)
        assert status == (-signal.SIGKILL if os.name == "posix" else 1), f"kill {number} at {event} {step}: {errors}"
        early += not path.exists()
        while_saving += bool(set(path.parent.glob(".*partial*")) - before)
        if path.exists():
            _, _, info = checkpoint.load_model(path)
            assert info["step"] >= last, f"kill {number}: step {last} was said to be saved"
        else:
            assert last == 0, f"kill {number}: step {last} was said to be saved"
    process = start(["-c", TRAIN, dataset.folder, path, epochs], tmp_path)
    _, status, errors = kill_at(process, None, 0, 0)
    assert status == 0, errors
    print(f"{KILLS} kills, {early} before there was a checkpoint, {KILLS - early} after, {while_saving} while saving")
    straight = finish(trainer_for(dataset, epochs=epochs, likelihood="calibrated"))
    assert_same(saved(straight, tmp_path / "straight.npz"), contents(path))


def wait_for(condition, process):
    """Wait until a condition holds or a process ends; return whether it holds."""
    for _ in range(100 * PATIENCE):
        if condition() or process.poll() is not None:
            return condition()
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"it did not come to pass within {PATIENCE} s")


def changed(path):
    """A condition: the file is another one than now."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    return lambda: path.exists() and path.stat().st_mtime_ns != before


def test_a_lesson_that_was_killed_ends_with_the_bits_of_a_run_that_was_not(tmp_path):
    dataset = write_dataset(tmp_path / "faces")
    kills = -(-KILLS // 5)
    epochs = 2 * kills + 1
    out = tmp_path / "run"
    path = out / "checkpoint.npz"
    flags = [LESSONS / "03_train.py", "--data", "faces", *FLAGS, "--epochs", epochs, "--save-every", 2, "--out", "run"]
    done, tries = 0, 0
    while True:
        process = start([*flags, "--resume"] if path.exists() else flags, tmp_path)
        tries += 1
        if tries <= kills:
            wait_for(changed(path), process)
            time.sleep(random.uniform(0, 0.3))
            process.kill()
        status, output, errors = end(process)
        _, _, info = checkpoint.load_model(path)
        said = [line for line in output.splitlines() if line.startswith("epoch ")]
        done += len(said)
        assert len(info["history"]) >= done, "an epoch that was said to be done is not in the checkpoint"
        if status == 0:
            break
        assert tries <= kills, errors
    print(f"{min(tries, kills)} kills of the lesson, {tries} starts")
    straight = finish(trainer_for(dataset, epochs=epochs, threads=None))
    assert_same(saved(straight, tmp_path / "straight.npz"), contents(path))
    assert {"history.csv", "losses.png", "progress.png"} <= {entry.name for entry in out.iterdir()}
    assert len((out / "history.csv").read_text(encoding="utf-8").splitlines()) == 1 + epochs


# Interrupted, in this process.


class StopError(Exception):
    pass


def stop_after(step, trainer):
    """Train to the end of a step, or of training."""
    def after_step():
        if trainer.adam.step == step:
            raise StopError
    try:
        finish(trainer, after_step)
    except StopError:
        assert trainer.adam.step == step


@pytest.fixture(params=["bernoulli", "calibrated"])
def straight(request, ramps, tmp_path):
    """The likelihood, and what a run of two epochs without interruption saves."""
    return request.param, saved(finish(trainer_for(ramps, likelihood=request.param)), tmp_path / "straight.npz")


def test_a_run_stopped_after_any_step_ends_with_the_same_bits(ramps, tmp_path, monkeypatch, straight):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 2)  # steps that wait to be fetched, and others that do not
    likelihood, expected = straight
    path = tmp_path / "a.npz"
    for step in range(1, 2 * STEPS + 1):
        trainer = trainer_for(ramps, likelihood=likelihood)
        stop_after(step, trainer)
        stopped = saved(trainer, path)
        resumed = trainer_for(ramps, path, likelihood=likelihood)
        assert resumed.adam.step == step
        assert_same(saved(resumed, path), stopped)
        assert_same(saved(finish(resumed), path), expected)


def test_a_run_stopped_after_each_step_ends_with_the_same_bits(ramps, tmp_path, straight):
    likelihood, expected = straight
    path = tmp_path / "a.npz"
    trainer = trainer_for(ramps, likelihood=likelihood)
    for step in range(1, 2 * STEPS + 1):
        stop_after(step, trainer)
        trainer.save(path)
        trainer = trainer_for(ramps, path, likelihood=likelihood)
    assert_same(saved(finish(trainer), path), expected)


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("where", ["evaluate", "look"])
def test_a_run_interrupted_after_its_steps_ends_with_the_same_bits(ramps, tmp_path, monkeypatch, straight, where,
                                                                    epoch):
    likelihood, expected = straight
    owner = train_module if where == "evaluate" else Trainer
    function, calls = getattr(owner, where), []

    def interrupted_once(*args):
        calls.append(args)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return function(*args)

    monkeypatch.setattr(owner, where, interrupted_once)
    trainer = trainer_for(ramps, likelihood=likelihood)
    with pytest.raises(KeyboardInterrupt):
        finish(trainer)
    assert (trainer.epoch, trainer.adam.step) == (epoch - 1, epoch * STEPS)
    trainer.save(tmp_path / "a.npz")
    for ongoing in (trainer_for(ramps, tmp_path / "a.npz", likelihood=likelihood), trainer):
        assert_same(saved(finish(ongoing), tmp_path / "b.npz"), expected)


class Interruption:
    """Raise KeyboardInterrupt at one of the places of vae_np/train.py where Python looks for signals, once.

    Those are, outside of a step: each new line, the call of each function in Python, and the return of each in C. It
    takes the first place that is not among `tried`, and adds it.
    """

    def __init__(self, trainer, tried):
        self.trainer, self.tried, self.place = trainer, tried, None

    def __call__(self, frame, event, argument):
        what = frame.f_code.co_name if event == "call" else argument.__name__ if event == "c_return" else ""
        if event == "call" and frame.f_code.co_filename != train_module.__file__:
            frame = frame.f_back
        if frame.f_code.co_filename != train_module.__file__ or self.place:
            return None
        if event in ("line", "call", "c_return") and not self.trainer.in_step:
            place = (frame.f_code.co_name, frame.f_lineno, event, what)
            if place not in self.tried:
                self.place = place
                self.tried.append(place)
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        sys.settrace(self)
        sys.setprofile(self)

    def __exit__(self, *exception):
        sys.settrace(None)
        sys.setprofile(None)


def test_a_run_interrupted_anywhere_ends_with_the_same_bits(ramps, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 2)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which would take most of the time
    small = {"epochs": 1, "batch_size": 8, "threads": 1}
    expected = saved(finish(trainer_for(ramps, **small)), tmp_path / "straight.npz")
    tried, lost, right = [], [], []
    while True:
        trainer = trainer_for(ramps, **small)
        interruption = Interruption(trainer, tried)
        with contextlib.suppress(KeyboardInterrupt), interruption:
            trainer.train_epoch()
        if not interruption.place:
            break
        try:
            arrays, info = saved(trainer, tmp_path / "a.npz")
            state = (info, [array.tobytes() for array in arrays.values()])
            if state not in right:  # most places save what others do
                resumed = finish(trainer_for(ramps, tmp_path / "a.npz", **small))
                assert_same(saved(resumed, tmp_path / "b.npz"), expected)
                right.append(state)
        except Exception as error:  # AssertionError among them
            lost.append(f"{interruption.place}: {type(error).__name__} {' '.join(str(error).split())[:80]}")
    assert len(tried) > 40, "too little was traced"
    assert not lost, "\n".join(["", *lost])


# Interrupted by signals.

# A lesson with something of it replaced, without its pictures, which take long, and which says when a step is done.
LESSON = """
import errno, os, runpy, signal, sys
import numpy as np
from vae_np import optim, vae
from vae_np.disk import files
from vae_np.fast import workers as parallel
from vae_np.run import trainer as train
from vae_np.study import pictures as images
images.plot_losses = images.save = lambda *args, **kwargs: None
step = train.Trainer.train_step

def train_step(self, x):
    terms = step(self, x)
    print("step", self.adam.step, flush=True)
    return terms

train.Trainer.train_step = train_step
{change}
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def room(tmp_path):
    write_dataset(tmp_path / "faces")
    return tmp_path


def start_lesson(room, *flags, change=""):
    """Lesson 03 in a room with faces, which writes to "run" there, after a change of the program."""
    return start(["-c", LESSON.format(change=change), LESSONS / "03_train.py", "--data", "faces", *FLAGS,
                  "--out", "run", *flags], room)


def lesson(room, *flags, change=""):
    """Run `start_lesson` to its end; return its status, the lines on standard error, and the steps that it took."""
    status, output, lines = end(start_lesson(room, *flags, change=change))
    return status, lines, steps(output)


def steps(output):
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("step ")]


def only_checkpoint_in(folder):
    """The path of the one checkpoint, whole or not, in a folder."""
    assert [entry.name for entry in folder.iterdir() if "checkpoint" in entry.name] == ["checkpoint.npz"]
    return folder / "checkpoint.npz"


@signals
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_lets_the_step_end_saves_and_says_how_to_go_on(room, number, status):
    process = start_lesson(room, "--epochs", 5000, "--save-every", 2)
    assert wait_for((room / "run" / "checkpoint.npz").exists, process), end(process)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(getattr(signal, number))
    ended, output, lines = end(process)
    assert ended == status, lines
    (line,) = lines
    assert line.startswith("interrupted: ")
    words = shlex.split(line.split("go on with: ")[1])
    assert words == ["python", "lessons/03_train.py", "--resume", "--out", "run", "--save-every", "2"]
    _, _, info = checkpoint.load_model(only_checkpoint_in(room / "run"))
    assert info["step"] == steps(output)[-1], "all steps that were done are saved"
    dataset = Dataset(room / "faces")
    resumed = trainer_for(dataset, room / "run" / "checkpoint.npz", epochs=5000, threads=None)
    straight = trainer_for(dataset, epochs=5000, threads=None)
    for trainer in (resumed, straight):  # a little further: what was saved may or may not include the end of an epoch
        stop_after(info["step"] + 3, trainer)
    assert_same(saved(straight, room / "straight.npz"), saved(resumed, room / "resumed.npz"))


# Between the update of the parameters and the end of the step, where there is half a step.
TWICE = """
update = optim.adam_step

def adam_step(*args):
    update(*args)
    taken.append(True)
    if len(taken) == 4 + 50:  # the lesson itself takes 50 steps on three numbers
        signal.raise_signal(signal.SIGINT)
        print("the first waits", flush=True)
        signal.raise_signal(signal.SIGINT)
        print("the second does not", flush=True)

taken, optim.adam_step = [], adam_step
"""


@signals
def test_a_second_ctrl_c_stops_at_once_and_leaves_the_old_checkpoint(room):
    status, output, lines = end(start_lesson(room, "--epochs", 5000, "--save-every", 1, change=TWICE))
    assert status == 130, lines
    assert "the first waits" in output
    assert "the second does not" not in output
    (line,) = lines
    assert "--resume" in line
    assert contents(only_checkpoint_in(room / "run"))[1]["step"] == 3
    straight = trainer_for(Dataset(room / "faces"), epochs=5000, threads=None)
    stop_after(3, straight)
    assert_same(saved(straight, room / "straight.npz"), contents(room / "run" / "checkpoint.npz"))


# The first waits for the end of step 4, after which it is saved; then the second comes.
WHILE_SAVING = """
update, sync = optim.adam_step, os.fsync

def adam_step(*args):
    update(*args)
    taken.append(True)
    if len(taken) == 4 + 50:
        signal.raise_signal(signal.SIGINT)

def fsync(file):
    if len(taken) == 4 + 50:
        signal.raise_signal(signal.SIGINT)
    sync(file)

taken, optim.adam_step, os.fsync = [], adam_step, fsync
"""


@signals
def test_a_second_ctrl_c_while_saving_leaves_the_old_checkpoint(room):
    status, lines, taken = lesson(room, "--epochs", 5000, "--save-every", 3, change=WHILE_SAVING)
    assert (status, lines, taken) == (130, ["interrupted"], [1, 2, 3, 4])
    assert checkpoint.load_model(only_checkpoint_in(room / "run"))[2]["step"] == 3


def test_what_was_killed_after_its_last_save_is_made_up_for_when_resumed(room):
    change = "train.write_history = lambda *args: os._exit(9)"
    status, lines, taken = lesson(room, "--epochs", 1, change=change)
    assert (status, taken) == (9, [1, 2, 3, 4, 5]), lines
    status, lines, taken = lesson(room, "--resume")
    assert (status, taken) == (0, []), lines
    assert (room / "run" / "history.csv").is_file()


# Failures.

FULL = OSError(errno.ENOSPC, "No space left on device")


def fails_with(error):
    def fail(*args, **kwargs):
        raise copy.copy(error)  # save names the file in it
    return fail


def half_written(self, content):
    with open(self, "wb") as file:
        file.write(content[: len(content) // 2])
    raise copy.copy(FULL)


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "status", "line"),
    [
        (os, "fsync", fails_with(FULL), 1, "error: [Errno 28] No space left on device: {path!r}"),
        (Path, "write_bytes", half_written, 1, "error: [Errno 28] No space left on device: {path!r}"),
        (Path, "write_bytes", fails_with(PermissionError(errno.EACCES, "Permission denied", "run/x")), 1,
         "error: [Errno 13] Permission denied: 'run/x'"),
        (os, "replace", fails_with(OSError(errno.EIO, "Input/output error")), 1,
         "error: [Errno 5] Input/output error: {path!r}"),
        (os, "replace", fails_with(KeyboardInterrupt()), 130, "interrupted: nothing was left unfinished"),
        (np, "savez", fails_with(MemoryError("out of memory")), 1, "error: out of memory"),
    ],
    ids=["full at fsync", "full in the middle", "read-only", "broken at rename", "Ctrl-C at rename", "memory"],
)
def test_a_failure_while_saving_leaves_the_old_checkpoint(ramps, tmp_path, monkeypatch, capsys, owner, name,
                                                          replacement, status, line):
    path = tmp_path / "run" / "checkpoint.npz"
    trainer = trainer_for(ramps)
    stop_after(2, trainer)
    trainer.save(path)
    old = path.read_bytes()
    stop_after(4, trainer)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        assert command.run(trainer.save, path=path) == status
    assert capsys.readouterr().err.splitlines()[-1:] == [line.format(path=str(path))]
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path], "something was left behind"
    trainer.save(path)  # there is room again
    straight = saved(finish(trainer_for(ramps)), tmp_path / "straight.npz")
    assert_same(saved(finish(trainer_for(ramps, path)), path), straight)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_folder_leaves_the_old_checkpoint(ramps, tmp_path, capsys):
    path = tmp_path / "run" / "checkpoint.npz"
    trainer = trainer_for(ramps)
    trainer.save(path)
    old = path.read_bytes()
    path.parent.chmod(0o500)
    try:
        assert command.run(trainer.save, path=path) == 1
    finally:
        path.parent.chmod(0o700)
    assert "Permission denied" in capsys.readouterr().err
    assert path.read_bytes() == old


DISK_FULL = """
sync = os.fsync

def fsync(file):
    calls.append(True)
    if len(calls) == 3:  # once for the file and once for its folder, each time
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(file)

calls, os.fsync = [], fsync
"""


@signals  # elsewhere fsync is called once a save, not twice
def test_a_disk_that_is_full_ends_the_lesson_in_one_line(room):
    status, lines, taken = lesson(room, "--save-every", 2, change=DISK_FULL)
    (line,) = lines
    assert (status, taken[-1]) == (1, 4)
    assert line == f"error: [Errno 28] No space left on device: {str(Path('run/checkpoint.npz'))!r}"
    assert checkpoint.load_model(only_checkpoint_in(room / "run"))[2]["step"] == 2


# In step 3, one of two threads fails and the other is slow.
WORKER = """
import time
compute = vae.VAE.loss_and_gradient

def loss_and_gradient(self, *args, **kwargs):
    calls.append(True)
    if len(calls) == 5:
        raise {error}
    if len(calls) == 6:
        time.sleep(0.3)
    return compute(self, *args, **kwargs)

calls, vae.VAE.loss_and_gradient = [], loss_and_gradient
parallel.available_cores = lambda: 2
"""


@pytest.mark.parametrize(("error", "line"), [
    ("RuntimeError('a thread broke')", "error: this is a bug: RuntimeError: a thread broke; VAE_DEBUG=1 shows where"),
    ("OSError('the images cannot be read')", "error: the images cannot be read")])
def test_an_error_in_a_thread_ends_training(room, error, line):
    if optim.xp is not np:
        pytest.skip("a GPU has one thread")
    status, lines, taken = lesson(room, "--save-every", 1, change=WORKER.format(error=error))
    assert (status, lines, taken) == (1, [line], [1, 2])
    assert checkpoint.load_model(only_checkpoint_in(room / "run"))[2]["step"] == 2


def test_a_folder_is_held_by_one_training_until_that_is_gone(room):
    path = room / "run" / "checkpoint.npz"
    first = start_lesson(room, "--epochs", 5000, "--save-every", 1)
    assert wait_for(path.exists, first), end(first)
    for flags in ([], ["--resume"]):
        line = "error: another training is writing to run; wait for it, or give another --out"
        assert end(start_lesson(room, *flags)) == (1, "", [line])
    before = checkpoint.load_model(path)[2]["step"]
    assert wait_for(lambda: checkpoint.load_model(path)[2]["step"] > before, first), end(first)  # the first goes on
    with pytest.raises(TrainingError, match="another training is writing to"):
        hold(room / "run")
    first.kill()
    end(first)
    hold(room / "run").release()
    assert [entry.name for entry in path.parent.glob("checkpoint*")] == ["checkpoint.npz"], "nothing was set aside"


def breaks_at(step, trainer, monkeypatch):
    """Let the loss of a step be NaN."""
    compute = Workers.loss_and_gradient

    def loss_and_gradient(self, *args):
        recon, kl = compute(self, *args)
        return (recon * np.nan if trainer.adam.step + 1 == step else recon), kl

    monkeypatch.setattr(Workers, "loss_and_gradient", loss_and_gradient)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(ramps, tmp_path, monkeypatch):
    expected = saved(finish(trainer_for(ramps)), tmp_path / "straight.npz")
    path = tmp_path / "a.npz"
    trainer = trainer_for(ramps)

    def after_step():
        if trainer.adam.step % 2 == 0:
            trainer.save(path)

    with monkeypatch.context() as patch:
        breaks_at(2 * STEPS - 2, trainer, patch)
        with pytest.raises(TrainingError, match="epoch 2, step 8: the reconstruction is nan"):
            finish(trainer, after_step)
    model, arrays, info = checkpoint.load_model(path)
    assert info["step"] == 2 * STEPS - 4
    assert all(np.isfinite(array).all() for array in (to_cpu(model.values), *arrays.values()))
    assert_same(saved(finish(trainer_for(ramps, path)), path), expected)


def test_parameters_that_are_not_finite_leave_the_last_checkpoint(ramps, tmp_path):
    path = tmp_path / "a.npz"
    trainer = trainer_for(ramps)
    stop_after(2, trainer)
    trainer.save(path)
    old = path.read_bytes()
    update = trainer.adam.update
    trainer.adam.update = lambda rate: update(rate) or trainer.model.values.fill(np.nan)
    stop_after(3, trainer)
    with pytest.raises(TrainingError):
        trainer.save(path)
    assert path.read_bytes() == old
