"""Every lesson at small size, as a reader runs it: what it writes, says, and refuses."""

import csv
import json
import os
import re
import runpy
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
from vae_np.losses import likelihood_of
from vae_np.run import checkpoint
from vae_np.study.metrics import evaluate

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
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]  # others are progress bars
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return result.returncode, lines[0]


@pytest.fixture
def here(monkeypatch, capfd):
    """A function that runs a lesson in this process, where it starts at once: its status, output and errors."""

    def run(command, cwd):
        lesson, *arguments = command.split()
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [str(LESSONS / lesson), *arguments])
        monkeypatch.setattr(backend, "FASTER", dict(backend.FASTER))  # which lesson 02 empties
        monkeypatch.setenv("VAE_BACKEND", backend.NAME)  # and sets to plain
        status = 0
        try:
            runpy.run_path(str(LESSONS / lesson), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        except Exception:
            sys.excepthook(*sys.exc_info())  # as Python does
            status = 1
        return (status, *capfd.readouterr())

    return run


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
    """A folder with a small dataset and a model that lesson 3 has trained on it, and things that do not fit."""
    folder = tmp_path_factory.mktemp("room")
    write_dataset(folder / "faces", train=40, validation=10, test=12)
    output = succeed("03_train.py", "--data", "faces", *SMALL, "--epochs", 4, "--lr", 0.02, "--prior", "gaussian",
                     cwd=folder)
    (folder / "output.txt").write_text(output, encoding="utf-8")
    write_dataset(folder / "large", size=24)
    write_dataset(folder / "five", test=5)
    write_dataset(folder / "one", train=1, test=1)
    (folder / "text.npz").write_text("no checkpoint", encoding="utf-8")
    arrays, info = checkpoint.load(folder / "runs/03_train/checkpoint.npz")
    for name, value in (("folder", "gone"), ("fingerprint", "another")):
        checkpoint.save(folder / f"{name}.npz", arrays, {**info, "data": {**info["data"], name: value}})
    return folder


@pytest.mark.parametrize(("command", "said", "pictures"), [
    ("01_data.py --data faces --components 8", ["train:      40 images"],
     {"faces.png", "mean_and_deviation.png", "components.png", "reconstructions.png"}),
    ("02_model.py --image-size 32 --channels 4 8 --latent-dim 3",
     ["the largest relative error is", "ConvTranspose2d(4 -> 3"], {"convolutions.png"}),
    ("06_interpolate.py --steps 4 --pairs 2 --data five", ["Note: the model was trained on ", "faces, not on five"],
     {"interpolations.png", "traversals.png", "interpolation.gif"}),
])
def test_lessons_1_2_and_6(room, command, said, pictures):
    lesson, *arguments = command.split()
    output = succeed(lesson, *arguments, cwd=room)
    for text in said:
        assert text in output
    assert "FAIL" not in output
    out = room / "runs" / lesson.removesuffix(".py")
    assert pictures_in(out) == pictures
    if "interpolation.gif" in pictures:
        with Image.open(out / "interpolation.gif") as animation:
            assert animation.n_frames > 20


def test_lesson_2_plants_bugs_and_lists_them(tmp_path, here):
    names = [line.split()[0] for line in here("02_model.py --break list", tmp_path)[1].splitlines()[1:]]
    assert len(names) == 12
    _, output, _ = here(f"02_model.py --break {names[-1]}", tmp_path)
    assert output.startswith(f"{names[-1]}, planted in")
    assert "checks catch it" in output
    assert not list(tmp_path.iterdir())


def test_lesson_3(room):
    out = room / "runs/03_train"
    assert pictures_in(out) == {"losses.png", "progress.png", "directions.png"}
    with open(out / "history.csv", newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    assert list(history[0]) == ["epoch", "loss", "recon", "kl", "beta", "val_loss", "val_recon", "val_kl", "val_psnr",
                                "images_per_second", "gradient_norm", "sigma", "active_units", "val_kl_max",
                                "val_kl_p90", "val_kl_median", "val_kl_p10"]  # fmt: skip
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    assert float(history[-1]["recon"]) < float(history[0]["recon"])
    output = (room / "output.txt").read_text(encoding="utf-8")
    line = r"^epoch +\d  loss .* recon .* kl .* beta .* validation: .* \d+ images/s, .* min left$"
    assert len(re.findall(line, output, re.MULTILINE)) == 4


def test_lesson_4(room):
    output = succeed("04_reconstruct.py", cwd=room)
    out = room / "runs/04_reconstruct"
    assert pictures_in(out) == {"reconstructions.png", "kl_by_dimension.png"}
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["split"], metrics["images"]) == ("test", 12)
    model, _, info = checkpoint.load_model(room / "runs/03_train/checkpoint.npz")
    figures = evaluate(model, Dataset(room / "faces").split("test"), likelihood_of(**info["likelihood"]))
    assert [metrics[name] for name in ("recon", "kl", "psnr")] == [
        pytest.approx(figures[name], rel=1e-4) for name in ("recon", "kl", "psnr")]
    assert metrics["negative_elbo"] == pytest.approx(metrics["recon"] + metrics["kl"])
    assert sum(metrics["kl_per_dimension"]) == pytest.approx(metrics["kl"], rel=1e-4)
    assert 5 < metrics["psnr"] < 60
    assert -1 <= metrics["ssim"] <= 1
    assert f"{metrics['psnr']:.2f} dB" in output


@pytest.mark.parametrize("asked_for", [["mixture"], pytest.param(
    [None, "mixture", None, "standard", None], marks=pytest.mark.slow)], ids=["once", "one after the other"])
def test_lesson_5_stores_the_prior_that_is_asked_for_and_uses_it_from_then_on(room, tmp_path, asked_for):
    path, prior, samples = Path(shutil.copy(room / "runs/03_train/checkpoint.npz", tmp_path)), "gaussian", {}
    for name in asked_for:
        before, prior = path.read_bytes(), name or prior
        output = succeed("05_sample.py", "--checkpoint", path, "--data", room / "faces", "--out", tmp_path / "out",
                         *(["--prior", name] if name else []), cwd=tmp_path)
        assert f"samples ({prior}): on average" in output
        assert ("now samples from " in output) == (path.read_bytes() != before) == (name is not None)
        for kind, picture in ((prior, "samples.png"), ("standard", "standard_samples.png")):
            content = (tmp_path / "out" / picture).read_bytes()
            assert samples.setdefault(kind, content) == content
    assert len(set(samples.values())) == len(samples) >= 2
    assert "|| N(0, I)):" in output
    table = re.findall(r"^(\S+) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+) +[\d.]+$", output, re.MULTILINE)
    assert [name for name, *_ in table] == ["standard", "gaussian", "mixture", "flow"]
    totals = [float(density) + float(kl) for _, _, density, kl in table]
    assert totals == pytest.approx([totals[0]] * 4, abs=0.03)  # minus E log q(z | x), whatever the prior
    assert pictures_in(tmp_path / "out") == {"standard_samples.png", "temperatures.png", "aggregate_posterior.png",
                                             "priors.png", "samples.png", "nearest.png"}  # fmt: skip


def test_lesson_10(tmp_path):
    output = succeed("10_speed.py", "--seconds", 0.001, cwd=tmp_path)
    if backend.NAME == "cupy":
        lines, picture = "array code, in blocks |one launch |products |Conv2d(|A whole step on ", "gpu.png"
    else:
        lines = ("    the last layer, 32 -> 3 channels: |FastConv2d |WinogradConv2d |PyTorch |"
                 "three products    [3 2 5] * [3 7 4] = [ 9 14 20], and neighbours added up: [23 34]\n")
        picture = "steps.png"
        rows = re.findall(r"^(\d) .+?  +([\d.,]+) +([\d.,]+) +.+%$", output, re.MULTILINE)
        assert [int(number) for number, *_ in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        numbers = [[float(text.replace(",", "")) for text in row] for row in rows]
        for _, milliseconds, rate in numbers:
            assert rate == pytest.approx(1000 / milliseconds, rel=0.2, abs=0.05)  # printed with one decimal
        assert numbers[-1][2] > 100 * numbers[0][2], "even on a busy machine"
    for line in lines.split("|"):
        assert f"\n{line}" in output
    assert pictures_in(tmp_path / "runs/10_speed") == {picture}


def test_without_data_toy_faces_are_drawn_once(tmp_path, monkeypatch):
    # As a newcomer's first command, but with few faces: the lesson calls the tool, whose default count is lowered here.
    (tmp_path / "sitecustomize.py").write_text("import sys\nif 'data_tools.toy_faces' in sys.orig_argv: "
                                               "sys.argv += ['--count', '40', '--size', '16']\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    output = succeed("01_data.py", "--components", 8, cwd=tmp_path)
    assert "drawing toy faces, once, to" in output
    assert "data_tools.celeba" in output
    assert len(Dataset(tmp_path / "data/toy64")) == 40
    assert "drawing" not in succeed("01_data.py", "--components", 8, cwd=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
def test_ctrl_c_while_faces_are_drawn_leaves_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, LESSONS / "01_data.py"], cwd=tmp_path, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(tmp_path.glob("data/.toy64.partial-*/images.npy")):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert (tmp_path / "data").is_dir() and not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("lesson", NAMES)
def test_help_and_length(lesson, tmp_path, here):
    status, output, errors = here(f"{lesson} --help", tmp_path)
    assert (status, errors) == (0, "")
    assert output.startswith("usage:")
    assert "None" not in output
    assert "(default: 10)" in output or lesson != "03_train.py"
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


NO_CHECKPOINT = (f"error: there is no checkpoint {Path('runs/03_train/checkpoint.npz')}; make it with: "
                 "python lessons/03_train.py, or take the trained one that is here: --pretrained (lessons run from the "
                 "top of the repository)\n")
REFUSED = [
    *[(f"{lesson}.py", 2, NO_CHECKPOINT) for lesson in (
        "04_reconstruct", "05_sample", "06_interpolate", "07_attributes", "09_compress", "12_explore")],
    ("04_reconstruct.py --pretrained --checkpoint a.npz", 2, "argument --checkpoint: not allowed with arg"),
    ("05_sample.py --pretrained --prior gaussian", 2,
     "--prior would change faces.npz, which comes with the lessons; copy it, and name the copy with --checkpoint"),
    (f"05_sample.py --checkpoint {LESSONS}/../lessons/weights/faces.npz --prior gaussian", 2,
     "--prior would change faces.npz, which comes with the lessons"),
    ("04_reconstruct.py --checkpoint runs/mine/checkpoint.npz", 2,
     f"make it with: python lessons/03_train.py --out {Path('runs/mine')} "),
    ("04_reconstruct.py --checkpoint mine.npz", 2, f"lesson 03 makes {Path('runs/03_train/checkpoint.npz')}"),
    ("04_reconstruct.py --checkpoint .", 2, "is a folder; name the file in it"),
    ("03_train.py --resume --out nowhere", 2, "there is no checkpoint"),
    ("01_data.py --components 0", 2, "argument --components: 0 is not between 1 and 999,999; see python "),
    ("02_model.py --channels -1", 2, "argument --channels: -1 is not between 1 and 999,999; see python "),
    ("02_model.py --break nothing", 2, "argument --break: invalid choice: 'nothing'"),
    ("03_train.py --epochs many", 2, "argument --epochs: invalid int value: 'many'"),
    ("03_train.py --likelihood poisson", 2, "argument --likelihood: invalid choice: 'poisson'"),
    ("03_train.py --lr inf", 2, "learning_rate must be above 0, not inf"),
    ("03_train.py --sigma thin", 2, "argument --sigma: invalid float value: 'thin'"),
    ("03_train.py --beta -1", 2, "beta must be 0 or more, not -1.0"),
    ("03_train.py --free-bits nan", 2, "free_bits must be 0 or more, not nan"),
    ("03_train.py --seed -1", 2, "argument --seed: -1 is not between 0 and"),
    ("04_reconstruct.py --limit 0", 2, "argument --limit: 0 is not between 1 and 999,999"),
    ("05_sample.py --prior two-stage", 2, "argument --prior: invalid choice: 'two-stage'"),
    ("06_interpolate.py --steps 1", 2, "argument --steps: 1 is not between 2 and 999"),
    ("10_speed.py --seconds 0", 2, "argument --seconds: '0' is not a number above 0"),
    ("01_data.py --data one", 1, "error: this lesson needs 20 training images or more, and there are 1"),
    ("02_model.py --image-size 60", 1, "image_size must be divisible by 16"),
    ("03_train.py --data faces --channels 4 4 4 4 4 --out new", 1, "image_size must be divisible by 32"),
    ("03_train.py --data nowhere", 1, "error: nowhere holds no prepared dataset (no dataset.json); make one with"),
    ("03_train.py --data faces --out faces/images.npy", 1, "images.npy"),
    ("03_train.py --resume --latent-dim 9 --beta 2", 1,
     "other settings than asked for: beta 1.0, not 2.0, latent_dim 5, not 9"),
    ("04_reconstruct.py --data large", 1, "prepare the dataset with --size 16"),
    ("05_sample.py --checkpoint text.npz", 1, "is damaged or no checkpoint"),
    ("05_sample.py --checkpoint folder.npz", 1, "was trained on gone, which is not there; name a dataset with --data"),
    ("05_sample.py --checkpoint fingerprint.npz", 1, "faces has changed since fingerprint.npz was trained on it"),
    ("06_interpolate.py --data one", 1, "error: this lesson needs 2 held-out images or more, and there are 1"),
]


@pytest.mark.parametrize(("command", "status", "complaint"), REFUSED, ids=[command for command, _, _ in REFUSED])
def test_what_does_not_fit_is_one_clear_line(room, tmp_path, here, monkeypatch, command, status, complaint):
    """Wrong usage, which is status 2, in an empty folder, and the rest, status 1, in the room."""
    ended, output, errors = here(command, room if status == 1 else tmp_path)
    assert (ended, errors.count("\n")) == (status, 1), errors
    assert errors.startswith("error: ")
    assert complaint in errors
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    if status == 2:
        assert output == ""
    else:
        monkeypatch.setenv("VAE_DEBUG", "1")
        _, _, traceback = here(command, room)
        assert traceback.startswith("Traceback (most recent call last):"), "for those who ask"
        assert traceback.endswith("\n" + errors)
