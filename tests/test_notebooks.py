"""Lessons in a kernel, as notebooks are: cell by cell, from top to bottom and again, by %run, and interrupted."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_dataset
from jupyter_client.manager import KernelManager
from test_lesson_machines import installed

LESSONS = Path(__file__).parent.parent / "lessons"
SMALL = "--channels 6 8 --latent-dim 5 --batch-size 8 --prior gaussian"
OPTIONS = {  # for a quick run of each lesson, in a folder that has toy64
    "01_data.py": "--data toy64 --components 8",
    "02_model.py": "--image-size 16 --channels 4 --latent-dim 3",
    "03_train.py": f"--data toy64 --epochs 1 {SMALL}",
    "04_reconstruct.py": "",
    "05_sample.py": "",
    "06_interpolate.py": "--steps 2 --pairs 1",
    "07_attributes.py": "--attributes Red Green",
    "08_objectives.py": "--data toy64 --epochs 8 --channels 4 8 --latent-dim 3",
    "09_compress.py": "--limit 3",
    "10_speed.py": "--seconds 0.001",
    "11_machines.py": "--data toy64 --epochs 1 --seconds 0.001",
    "12_explore.py": "",
}
PATIENCE = 100  # seconds after which a cell hangs
HOLD = "import sys; from vae_np.disk.files import hold; hold(sys.argv[1])"


class Kernel:
    """A kernel of this Python that starts beside the lessons, as editors start it."""

    def __init__(self, lessons):
        self.lessons, self.manager = lessons, KernelManager()
        self.manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager.start_kernel(cwd=str(lessons))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def run(self, code, watch=lambda output: None):
        """Run a cell: what it printed, and the name of the error that it ended with, or None.

        watch is called, with all that it has printed so far, whenever it prints.
        """
        output = []

        def take(message):
            output.append(message["content"].get("text", ""))
            watch("".join(output))

        reply = self.client.execute_interactive(code, timeout=PATIENCE, output_hook=take)["content"]
        return "".join(output), "\n".join(reply.get("traceback", [])) or None

    def succeed(self, *codes):
        """Run cells, none of which may fail; what they printed."""
        outputs = []
        for code in codes:
            output, error = self.run(code)
            assert error is None, f"{code}\n{output}\n{error}"
            outputs.append(output)
        return "".join(outputs)

    def options(self, lesson, options):
        """Have the cells of a lesson find the command line that a console would give it."""
        self.succeed(f"import sys; sys.argv = {[str(self.lessons / lesson), *options.split()]}")


def cells(lesson):
    """The cells of a lesson; the first is its introduction."""
    return re.split("^(?=# %%)", (LESSONS / lesson).read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.fixture
def repository(tmp_path):
    """A folder with the lessons and a small dataset, the default one, in place of this repository."""
    shutil.copytree(LESSONS, tmp_path / "lessons", ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    write_dataset(tmp_path / "data" / "toy64", train=40, validation=10, test=12)
    return tmp_path


@pytest.fixture
def kernel(repository, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(repository / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(repository / "runtime"))
    kernel = Kernel(repository / "lessons")
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_options_count_with_run_and_in_cells_the_defaults_hold(kernel, repository):
    kernel.succeed(*cells("01_data.py"))
    assert (repository / "runs" / "01_data" / "faces.png").is_file()
    write_dataset(repository / "other", train=30)
    printed = kernel.succeed("%run lessons/01_data.py --data other --out there --components 8")
    assert "train:      30 images" in printed
    assert (repository / "there" / "faces.png").is_file()


def test_lesson_3_is_interrupted_and_run_again(kernel, repository):
    out = repository / "out"
    kernel.options("03_train.py", f"--out {out} --data {repository}/data/toy64 --epochs 5000 {SMALL}")
    introduction, settings, *rest = cells("03_train.py")
    train = next(i for i, cell in enumerate(rest) if cell.startswith("# %% Train\n"))
    kernel.succeed(introduction, settings, settings, *rest[:train])
    interrupted = []

    def interrupt(output):
        if "epoch  2  loss" in output and not interrupted:
            interrupted.append(kernel.manager.interrupt_kernel())

    output, error = kernel.run(rest[train], interrupt)
    assert "SystemExit" in error
    assert "go on with: python lessons/03_train.py --resume" in output
    subprocess.run([sys.executable, "-c", HOLD, out], check=True)  # another program may go on
    kernel.options("03_train.py", f"--out {out} --data {repository}/data/toy64 --epochs 1 {SMALL}")
    output = kernel.succeed(settings, *rest)
    assert "the checkpoint.npz of an earlier run is now" in output
    assert "samples from the gaussian prior" in output


@pytest.mark.slow
def test_all_cells_of_all_lessons_run_twice(repository, kernel):
    kernel.succeed("import sys; sys.path.insert(0, '../lessons')", "%cd -q ../data")
    assert sorted(OPTIONS) == sorted(path.name for path in LESSONS.glob("[0-9]*.py"))
    for lesson, options in OPTIONS.items():
        if lesson == "11_machines.py" and not installed():
            continue
        kernel.options(lesson, options)
        for _ in range(2):
            kernel.succeed(*cells(lesson))
