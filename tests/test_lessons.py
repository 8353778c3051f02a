"""Every lesson at small size in a process of its own, as a reader runs it: what it writes, says, and refuses."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset
from PIL import Image

from vae_np import backend
from vae_np.disk.dataset import Dataset

LESSONS = Path(__file__).parent.parent / "lessons"
NAMES = sorted(path.name for path in LESSONS.glob("[0-9]*.py"))
# As in setup.cfg; the form of an environment variable has no patterns, so each false alarm is spelled out.
WARNINGS = "error::RuntimeWarning," + ",".join(
    f"ignore:{what} encountered in matmul:RuntimeWarning" for what in ("divide by zero", "overflow", "invalid value"))
SMALL = ["--epochs", "2", "--batch-size", "8", "--channels", "6", "8", "--latent-dim", "5"]


def run(lesson, *arguments, cwd):
    command = [sys.executable, LESSONS / lesson, *map(str, arguments)]
    environment = {**os.environ, "PYTHONWARNINGS": WARNINGS}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8",
                          timeout=120, check=False)


def succeed(lesson, *arguments, cwd):
    result = run(lesson, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def fail(lesson, *arguments, cwd):
    """Run a lesson that must end with one line; return its status and that line."""
    result = run(lesson, *arguments, cwd=cwd)
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return result.returncode, lines[0]


def history_of(folder):
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures_in(folder):
    """The names of the pictures in a folder, each of which must be a whole picture that shows something."""
    names = set()
    for path in folder.iterdir():
        if path.suffix in {".png", ".gif"}:
            with Image.open(path) as picture:
                assert np.asarray(picture.convert("L")).std() > 1, f"{path} shows nothing"
            names.add(path.name)
    return names


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a small dataset and a model that lesson 3 has trained on it."""
    folder = tmp_path_factory.mktemp("room")
    write_dataset(folder / "faces", train=40, validation=10, test=12)
    output = succeed("03_train.py", "--data", "faces", *SMALL, "--epochs", 6, "--lr", 0.02, cwd=folder)
    (folder / "output.txt").write_text(output, encoding="utf-8")
    return folder


def test_lesson_1(room):
    output = succeed("01_data.py", "--data", "faces", "--components", 8, cwd=room)
    assert "train:      40 images" in output
    assert pictures_in(room / "runs/01_data") == {
        "faces.png", "mean_and_deviation.png", "components.png", "reconstructions.png"}  # fmt: skip


def test_lesson_2(room):
    output = succeed("02_model.py", "--image-size", 32, "--channels", 4, 8, "--latent-dim", 3, cwd=room)
    assert "the largest relative error is" in output
    assert "FAIL" not in output
    assert pictures_in(room / "runs/02_model") == {"convolutions.png"}
    assert "ConvTranspose2d(4 -> 3" in output


def test_lesson_2_plants_bugs_and_lists_them(tmp_path):
    names = [line.split()[0] for line in succeed("02_model.py", "--break", "list", cwd=tmp_path).splitlines()[1:]]
    assert len(names) == 12
    output = succeed("02_model.py", "--break", names[-1], cwd=tmp_path)
    assert output.startswith(f"{names[-1]}, planted in")
    assert "checks catch it" in output
    status, line = fail("02_model.py", "--break", "nothing", cwd=tmp_path)
    assert status == 2
    assert "invalid choice: 'nothing'" in line
    assert not list(tmp_path.iterdir())


def test_lesson_3(room):
    out = room / "runs/03_train"
    assert pictures_in(out) == {"losses.png", "progress.png"}
    history = history_of(out)
    assert list(history[0]) == ["epoch", "loss", "recon", "kl", "beta", "val_loss", "val_recon", "val_kl", "val_psnr",
                                "images_per_second", "gradient_norm", "sigma", "active_units", "val_kl_max",
                                "val_kl_p90", "val_kl_median", "val_kl_p10"]  # fmt: skip
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4", "5", "6"]
    assert float(history[-1]["recon"]) < float(history[0]["recon"])
    output = (room / "output.txt").read_text(encoding="utf-8")
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 6
    for word in ("loss", "recon", "kl", "beta", "validation", "images/s", "min left"):
        assert word in lines[0]


def test_lesson_4(room):
    output = succeed("04_reconstruct.py", cwd=room)
    out = room / "runs/04_reconstruct"
    assert pictures_in(out) == {"reconstructions.png", "kl_by_dimension.png"}
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["split"], metrics["images"]) == ("test", 12)
    assert metrics["negative_elbo"] == pytest.approx(metrics["recon"] + metrics["kl"])
    assert sum(metrics["kl_per_dimension"]) == pytest.approx(metrics["kl"], rel=1e-4)
    assert 5 < metrics["psnr"] < 60
    assert -1 <= metrics["ssim"] <= 1
    assert f"{metrics['psnr']:.2f} dB" in output


def test_lesson_5(room):
    checkpoint = room / "runs/03_train/checkpoint.npz"
    content = checkpoint.read_bytes()
    output = succeed("05_sample.py", cwd=room)
    assert "|| N(0, I)):" in output
    assert "samples (standard): on average" in output
    table = re.findall(r"^(\S+) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+) +[\d.]+$", output, re.MULTILINE)
    assert [name for name, *_ in table] == ["standard", "gaussian", "mixture", "two-stage"]
    totals = [float(density) + float(kl) for _, _, density, kl in table]
    assert totals == pytest.approx([totals[0]] * 4, abs=0.03)  # minus E log q(z | x), whatever the prior
    assert pictures_in(room / "runs/05_sample") == {
        "standard_samples.png", "temperatures.png", "aggregate_posterior.png", "priors.png", "samples.png",
        "nearest.png"}  # fmt: skip
    assert checkpoint.read_bytes() == content


def test_lesson_5_stores_the_prior_that_is_asked_for_and_uses_it_from_then_on(room, tmp_path):
    shutil.copy(room / "runs/03_train/checkpoint.npz", tmp_path)
    flags = ["--checkpoint", tmp_path / "checkpoint.npz", "--data", room / "faces", "--out", tmp_path]
    succeed("05_sample.py", *flags, cwd=tmp_path)
    standard = (tmp_path / "samples.png").read_bytes()
    assert standard == (tmp_path / "standard_samples.png").read_bytes()
    output = succeed("05_sample.py", *flags, "--prior", "mixture", cwd=tmp_path)
    assert "now samples from Mixture(10 components)" in output
    mixture = (tmp_path / "samples.png").read_bytes()
    assert mixture != standard
    assert "samples (mixture): on average" in succeed("05_sample.py", *flags, cwd=tmp_path)
    assert (tmp_path / "samples.png").read_bytes() == mixture
    assert (tmp_path / "standard_samples.png").read_bytes() == standard
    succeed("05_sample.py", *flags, "--prior", "standard", cwd=tmp_path)
    assert (tmp_path / "samples.png").read_bytes() == standard


def test_lesson_6(room):
    succeed("06_interpolate.py", "--steps", 4, "--pairs", 2, cwd=room)
    out = room / "runs/06_interpolate"
    assert pictures_in(out) == {"interpolations.png", "traversals.png", "interpolation.gif"}
    with Image.open(out / "interpolation.gif") as animation:
        assert animation.n_frames > 20


@pytest.mark.skipif(backend.NAME != "numpy", reason="with CuPy, the lesson times the GPU instead")
def test_lesson_10(tmp_path):
    output = succeed("10_speed.py", "--seconds", 0.001, cwd=tmp_path)
    rows = re.findall(r"^(\d) (.+?)  +([\d.,]+) +([\d.,]+) +[\d.,]+ +[\d.,]+ +[\d.,]+ +[\d.]+%$", output, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == [1, 2, 3, 4, 5, 6]
    for _, name, milliseconds, rate in rows:
        milliseconds, rate = (float(text.replace(",", "")) for text in (milliseconds, rate))
        assert rate == pytest.approx(1000 / milliseconds, rel=0.2, abs=0.05), name  # printed with one decimal
    rates = [float(rate.replace(",", "")) for *_, rate in rows]
    assert rates[-1] > 100 * rates[0], "even on a busy machine"
    assert "three products    [3 2 5] * [3 7 4] = [ 9 14 20], and neighbours added up: [23 34]" in output
    for line in ("    tiles_of ", "Conv2d ", "WinogradConv2d ", "PyTorch "):
        assert f"\n{line}" in output
    assert pictures_in(tmp_path / "runs/10_speed") == {"steps.png"}


@pytest.mark.skipif(backend.NAME != "cupy", reason="needs VAE_BACKEND=cupy")
def test_lesson_10_with_a_gpu(tmp_path):
    output = succeed("10_speed.py", "--seconds", 0.001, cwd=tmp_path)
    for line in ("array code, in blocks ", "one launch ", "products ", "Conv2d(", "A whole step on "):
        assert f"\n{line}" in output
    assert pictures_in(tmp_path / "runs/10_speed") == {"gpu.png"}


def test_resuming_in_the_lesson_equals_not_having_stopped(room):
    flags = ["--data", "faces", *SMALL, "--seed", 4]
    succeed("03_train.py", *flags, "--epochs", 3, "--out", "straight", cwd=room)
    # The schedule knows how many epochs there will be, so the run is stopped by hand after the first of three.
    stop = ("import sys, runpy; from vae_np.run.trainer import Trainer; save = Trainer.save\n"
            "sys.path.insert(0, r'{}')\n"
            "def once(self, path): save(self, path); sys.exit(9)\n"
            "Trainer.save = once; sys.argv[0] = '03_train.py'; runpy.run_path(r'{}', run_name='__main__')")
    command = [sys.executable, "-c", stop.format(LESSONS, LESSONS / "03_train.py"), *map(str, flags)]
    command += ["--epochs", "3", "--out", "stopped"]
    stopped = subprocess.run(command, cwd=room, capture_output=True, check=False)
    assert stopped.returncode == 9, stopped.stderr
    output = succeed("03_train.py", "--resume", "--out", "stopped", cwd=room)
    assert "going on after epoch 1 of 3" in output
    with np.load(room / "straight/checkpoint.npz") as a, np.load(room / "stopped/checkpoint.npz") as b:
        for name in ("values", "m", "v", "progress"):
            np.testing.assert_array_equal(a[name], b[name], name)
    rows = [[{k: v for k, v in row.items() if k != "images_per_second"} for row in history_of(room / name)]
            for name in ("straight", "stopped")]
    assert rows[0] == rows[1]
    assert "nothing is left to do" in succeed("03_train.py", "--resume", "--out", "stopped", cwd=room)


def test_resuming_with_other_settings_or_without_a_checkpoint_is_refused(room):
    status, line = fail("03_train.py", "--resume", "--latent-dim", 9, "--beta", 2, cwd=room)
    assert status == 1
    assert "other settings than asked for: beta 1.0, not 2.0, latent_dim 5, not 9" in line
    status, line = fail("03_train.py", "--resume", "--out", "nowhere", cwd=room)
    assert status == 2
    assert "there is no checkpoint" in line


def test_a_second_run_keeps_what_earlier_ones_left(room):
    flags = ["--data", "faces", *SMALL, "--epochs", 1, "--out", "again"]
    succeed("03_train.py", *flags, cwd=room)
    first = (room / "again/checkpoint.npz").read_bytes()
    (room / "again/checkpoint-1.npz").write_bytes(b"of a run before")
    assert "checkpoint-2.npz" in succeed("03_train.py", *flags, "--seed", 1, cwd=room)
    assert (room / "again/checkpoint-1.npz").read_bytes() == b"of a run before"
    assert (room / "again/checkpoint-2.npz").read_bytes() == first
    assert (room / "again/checkpoint.npz").read_bytes() != first


@pytest.mark.parametrize("lesson", ["04_reconstruct.py", "05_sample.py", "06_interpolate.py", "07_attributes.py",
                                    "09_compress.py"])
def test_without_a_checkpoint_the_lesson_says_what_makes_one(lesson, tmp_path):
    status, line = fail(lesson, cwd=tmp_path)
    assert status == 2
    checkpoint = Path("runs/03_train/checkpoint.npz")
    expected = f"error: there is no checkpoint {checkpoint}; make it with: python lessons/03_train.py"
    assert line == expected + " (lessons run from the top of the repository)"
    status, line = fail(lesson, "--checkpoint", "runs/mine/checkpoint.npz", cwd=tmp_path)
    assert status == 2
    assert line.split("make it with: ")[1].startswith(f"python lessons/03_train.py --out {Path('runs/mine')} ")
    assert "lesson 03 makes runs/03_train/checkpoint.npz" in fail(lesson, "--checkpoint", "mine.npz", cwd=tmp_path)[1]
    assert "is a folder; name the file in it" in fail(lesson, "--checkpoint", ".", cwd=tmp_path)[1]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_what_does_not_fit_is_one_clear_line(room):
    write_dataset(room / "large", size=24)
    assert fail("04_reconstruct.py", "--data", "large", cwd=room)[1].endswith("prepare the dataset with --size 16")
    status, line = fail("03_train.py", "--data", "nowhere", cwd=room)
    assert (status, line.split(";")[0]) == (1, "error: nowhere holds no prepared dataset (no dataset.json)")
    line = fail("03_train.py", "--data", "faces", "--channels", 4, 4, 4, 4, 4, cwd=room)[1]
    assert "image_size must be divisible by 32" in line
    assert "image_size must be divisible by 16" in fail("02_model.py", "--image-size", 60, cwd=room)[1]
    line = fail("03_train.py", "--data", "faces", "--epochs", 0, cwd=room)[1]
    assert line.startswith("error: argument --epochs: 0 is not between 1 and 999,999")
    (room / "text.npz").write_text("no checkpoint", encoding="utf-8")
    assert "is damaged or no checkpoint" in fail("05_sample.py", "--checkpoint", "text.npz", cwd=room)[1]


def test_a_dataset_that_changed_since_training_is_noticed(room, tmp_path):
    write_dataset(tmp_path / "faces", train=40, validation=10, test=12, seed=9)
    checkpoint = room / "runs/03_train/checkpoint.npz"
    (room / "faces").rename(room / "hidden")
    try:
        assert "which is no longer there; name one with --data" in fail("05_sample.py", cwd=room)[1]
        shutil.copytree(tmp_path / "faces", room / "faces")
        assert "has changed since" in fail("05_sample.py", cwd=room)[1]
        shutil.rmtree(room / "faces")
    finally:
        (room / "hidden").rename(room / "faces")
    note = succeed("05_sample.py", "--checkpoint", checkpoint, "--data", tmp_path / "faces", cwd=tmp_path)
    assert f"Note: the model was trained on {room / 'faces'}, not on {tmp_path / 'faces'}" in note


def test_without_data_toy_faces_are_drawn_once(tmp_path, monkeypatch):
    # As a newcomer's first command, but with few faces: the lesson calls the tool, whose default count is lowered here.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'data_tools.toy_faces' in sys.orig_argv: sys.argv += ['--count', '40']\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    output = succeed("03_train.py", *SMALL, "--epochs", 1, cwd=tmp_path)
    assert "drawing toy faces, once, to" in output
    assert "data_tools.celeba" in output
    assert len(Dataset(tmp_path / "data/toy64")) == 40
    assert "drawing" not in succeed("03_train.py", *SMALL, "--epochs", 1, cwd=tmp_path)


@pytest.mark.parametrize("lesson", NAMES)
def test_help_and_length(lesson, tmp_path):
    assert succeed(lesson, "--help", cwd=tmp_path).startswith("usage:")
    text = (LESSONS / lesson).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    assert text.count("# %%") >= 4
    exercises = text.split("# Exercises\n")[1].splitlines()
    assert [line[:5] for line in exercises if line[2].isdigit()] == ["# 1. ", "# 2. ", "# 3. "]
    assert not list(tmp_path.iterdir())


def test_without_the_packages_a_lesson_says_what_to_do(tmp_path):
    command = [sys.executable, "-S", LESSONS / "01_data.py"]  # -S: a Python that finds nothing that was installed
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: numpy is not installed here; activate the environment")
    assert result.stderr.count("\n") == 1


def interrupt(process):
    """Ctrl-C as a terminal sends it: to every process of the group."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)


def start(lesson, *arguments, cwd):
    return subprocess.Popen([sys.executable, LESSONS / lesson, *map(str, arguments)], cwd=cwd, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass within 30 s")


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
def test_ctrl_c_while_faces_are_drawn_leaves_nothing(tmp_path):
    process = start("01_data.py", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("data/.toy64.partial-*/images.npy")))
    _, errors = interrupt(process)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
def test_ctrl_c_while_training_says_how_to_go_on(room, tmp_path):
    out = tmp_path / "run"
    process = start("03_train.py", "--data", "faces", *SMALL, "--epochs", 5000, "--out", out, cwd=room)
    wait_for((out / "progress.png").is_file)
    _, errors = interrupt(process)
    assert process.returncode == 130, errors
    assert f"go on with: python lessons/03_train.py --resume --out {out}" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("lesson", "flag", "value", "complaint"),
    [
        ("01_data.py", "--components", "0", "0 is not between 1 and 999,999"),
        ("02_model.py", "--channels", "-1", "-1 is not between 1 and 999,999"),
        ("03_train.py", "--epochs", "many", "invalid whole number value: 'many'"),
        ("03_train.py", "--likelihood", "poisson", "invalid choice: 'poisson'"),
        ("03_train.py", "--lr", "inf", "'inf' is not a number above 0"),
        ("03_train.py", "--lr", "fast", "'fast' is not a number above 0"),
        ("03_train.py", "--sigma", "-1", "'-1' is not a number above 0"),
        ("03_train.py", "--beta", "-1", "'-1' is not a number of 0 or more"),
        ("03_train.py", "--free-bits", "nan", "'nan' is not a number of 0 or more"),
        ("03_train.py", "--seed", "-1", "-1 is not between 0 and"),
        ("04_reconstruct.py", "--limit", "0", "0 is not between 1 and 999,999"),
        ("05_sample.py", "--prior", "flow", "invalid choice: 'flow'"),
        ("06_interpolate.py", "--steps", "1", "1 is not between 2 and 999"),
        ("10_speed.py", "--seconds", "0", "'0' is not a number above 0"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(lesson, flag, value, complaint, tmp_path):
    status, line = fail(lesson, flag, value, cwd=tmp_path)
    assert status == 2
    assert f"argument {flag}: {complaint}" in line
    assert not list(tmp_path.iterdir())


def test_help_names_the_defaults_that_there_are(tmp_path):
    output = succeed("03_train.py", "--help", cwd=tmp_path)
    assert "(default: 10)" in output
    assert "None" not in output


def test_few_held_out_faces_are_enough_or_it_is_said(room, tmp_path):
    checkpoint = room / "runs/03_train/checkpoint.npz"
    write_dataset(tmp_path / "five", test=5)
    succeed("06_interpolate.py", "--checkpoint", checkpoint, "--data", "five", cwd=tmp_path)
    write_dataset(tmp_path / "one", train=1, test=1)
    line = fail("06_interpolate.py", "--checkpoint", checkpoint, "--data", "one", cwd=tmp_path)[1]
    assert line == "error: this lesson needs 2 held-out images or more, and there are 1"
    line = fail("01_data.py", "--data", "one", cwd=tmp_path)[1]
    assert line == "error: this lesson needs 20 training images or more, and there are 1"


def test_an_out_that_cannot_be_written_is_one_line(room):
    status, line = fail("03_train.py", "--data", "faces", *SMALL, "--out", "faces/images.npy", cwd=room)
    assert status == 1
    assert "images.npy" in line
