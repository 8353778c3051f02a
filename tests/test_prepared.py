import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from test_dataset import FACTORS, fill, write

from data_tools import check
from data_tools.prepared import LOCK, REPLACED, DatasetWriter, map_rows, submit_all
from vae_np.disk.dataset import Dataset, checksum
from vae_np.disk.files import replacing
from vae_np.errors import DatasetError


def check_only(folder, value):
    """Check that a dataset with this value in each pixel is all that its parent has."""
    assert np.all(Dataset(folder).images == value)
    assert os.listdir(folder.parent) == [folder.name]


def test_finish_writes_all_files_with_their_checksums(tmp_path):
    folder = write(tmp_path / "deep" / "data", images=7)
    check_only(folder, 7)
    assert sorted(os.listdir(folder)) == ["attributes.npy", "dataset.json", "factors.npy", "images.npy"]
    info = Dataset(folder).info
    assert info["seed"] == 3
    assert info["checksums"] == {path.name: checksum(path) for path in folder.glob("*.npy")}
    np.testing.assert_array_equal(np.load(folder / "factors.npy"), FACTORS)


def test_a_dataset_that_cannot_be_begun_leaves_nothing_behind(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
        with pytest.raises(DatasetError, match=r"needs 12.8 MB, and its disk has 2.0 MB free; make room"):
            DatasetWriter(tmp_path / "data", count=1000, size=64).__enter__()
    for error, raised in ((OSError(errno.ENODEV, ""), DatasetError), (OSError(errno.EIO, ""), OSError)):
        monkeypatch.setattr(np.lib.format, "open_memmap", mock.Mock(side_effect=error))
        with pytest.raises(raised, match="cannot map a file" if raised is DatasetError else None):
            DatasetWriter(tmp_path / "data", count=10, size=8).__enter__()
    assert os.listdir(tmp_path) == []


def test_a_dataset_is_replaced_only_if_asked_for_and_by_a_whole_one(tmp_path):
    folder = write(tmp_path / "data", images=7)
    with pytest.raises(DatasetError, match="exists; choose another --out or give --overwrite"):
        write(folder, images=9)
    for stop in (ValueError, KeyboardInterrupt):
        with pytest.raises(stop), DatasetWriter(folder, 10, 8, overwrite=True):
            assert np.all(Dataset(folder).images == 7)
            raise stop
        check_only(folder, 7)
    write(folder, images=9, overwrite=True)
    check_only(folder, 9)


def test_overwrite_spares_what_is_something_else(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "both")
    for folder, problem in (("mine", "not a prepared dataset"), ("both", r"more than a prepared .* \(thesis.txt\)")):
        (tmp_path / folder / "thesis.txt").write_text("years of work")
        with pytest.raises(DatasetError, match=problem):
            write(tmp_path / folder, overwrite=True)
        assert (tmp_path / folder / "thesis.txt").is_file()


def test_a_folder_that_appears_meanwhile_is_spared(tmp_path):
    with pytest.raises(DatasetError, match="exists"), DatasetWriter(tmp_path / "data", 10, 8) as writer:
        write(tmp_path / "data", images=7)
        fill(writer, images=9)
    check_only(tmp_path / "data", 7)


def test_the_old_dataset_goes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    folder = write(tmp_path / "data", images=7)

    def second_fails(source, target, replace=os.replace):
        if Path(target) == folder and Path(source).name != REPLACED:
            raise PermissionError("a program has a file of it open")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(PermissionError):
        write(folder, images=9, overwrite=True)
    check_only(folder, 7)


def test_keep_leaves_the_other_rows_out(tmp_path):
    with DatasetWriter(tmp_path / "data", count=100, size=8) as writer:
        np.load(writer.images_path, mmap_mode="r+")[...] = np.arange(100).reshape(-1, 1, 1, 1)
        writer.keep([0, 50, 99])
        np.testing.assert_array_equal(np.load(writer.images_path)[:, 7, 7, 2], [0, 50, 99])


KILLED = """
import time
from data_tools.prepared import DatasetWriter, map_rows

def work(start, stop):
    print("at work", flush=True)
    time.sleep(60)

def main():
    with DatasetWriter("data", count=2, size=8):
        list(map_rows(work, 2, 2, "sleeping", chunk=1))
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a program as POSIX systems do")
def test_what_a_killed_run_left_behind_goes_with_the_next(tmp_path, capsys):
    (tmp_path / "killed.py").write_text(KILLED)
    program = subprocess.Popen([sys.executable, "-c", "import killed; killed.main()"], text=True, cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert [program.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
    write(tmp_path / "data")  # another run leaves alone what a live one is writing
    assert len(list(tmp_path.glob(".data.partial-*/images.npy"))) == 1
    assert capsys.readouterr().out == ""
    program.kill()
    program.communicate(timeout=20)  # ends with the last of its workers, since they hold its output, too
    write(tmp_path / "data", overwrite=True)
    assert sorted(set(os.listdir(tmp_path)) - {"__pycache__"}) == ["data", "killed.py"]
    assert capsys.readouterr().out.count("left by a run that was killed") == 1


def test_a_run_killed_while_it_swaps_loses_no_dataset(tmp_path):
    folder = write(tmp_path / "data", images=7)
    staging = DatasetWriter(folder, 10, 8).staging
    staging.mkdir()
    (staging / LOCK).touch()
    os.rename(folder, staging / REPLACED)
    with pytest.raises(DatasetError, match="exists"), DatasetWriter(folder, 10, 8):
        pytest.fail("was to be refused before any work")
    check_only(folder, 7)


@pytest.mark.parametrize("name", ["images.npy", "factors.npy"])
def test_check_says_whether_a_dataset_is_whole(tmp_path, capsys, name):
    path = write(tmp_path / "data") / name
    assert check.main([str(path.parent)]) == 0
    assert capsys.readouterr().out == "whole: Dataset(noise, 8x8, crop none: 6 train, 3 validation, 1 test)\n"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # which opening does not see
    path.write_bytes(content)
    assert check.main([str(path.parent)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is missing or damaged") and error.endswith("prepare the dataset again\n")


def test_a_single_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "b.txt"
    with replacing(path) as partial:
        partial.write_text("all that is new")
        assert not path.exists()
        assert partial.suffix == ".txt"
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "all that is new"
    assert list(path.parent.iterdir()) == [path]


def total(start, stop, items):
    """A task for workers: the sum of its items, or trouble where an item asks for it. Ctrl-C cannot reach it."""
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert os.name != "posix" or signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if "stop" in items:
        raise DatasetError(f"rows {start} to {stop} are bad")
    if "die" in items:
        os._exit(1)
    return sum(items)


def test_map_rows_gives_each_chunk_its_items_in_order(capsys):
    before = signal.getsignal(signal.SIGINT)
    results = list(map_rows(total, 5, workers=2, description="adding", chunk=2, items=[1, 2, 3, 4, 5]))
    assert results == [(0, 2, 3), (2, 4, 7), (4, 5, 5)]
    assert len(list(map_rows(total, 2, 2, "adding", items=[1, 2]))) == 2, "each worker has some of a few"
    assert signal.getsignal(signal.SIGINT) is before
    assert "adding: 100%" in capsys.readouterr().err


MAKE = "from data_tools import toy_faces\ntoy_faces.main('--out data --count 10 --size 8 --workers 2'.split())\n"
PROGRAMS = {
    "script": (["make.py"], MAKE),
    "module": (["-m", "make"], MAKE),
    "standard input": ([], MAKE),
    "thread": (["make.py"], f"import threading as t\na = t.Thread(target=exec, args=[{MAKE!r}])\na.start(), a.join()"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_without_a_guard_from_anywhere_makes_a_dataset_once(tmp_path, kind):
    arguments, program = PROGRAMS[kind]
    (tmp_path / "make.py").write_text("print('begun')\n" + program)
    done = subprocess.run([sys.executable, *arguments], input=None if arguments else program, cwd=tmp_path, text=True,
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.count("begun"), "error" in done.stderr) == (0, bool(arguments), False), done
    assert len(Dataset(tmp_path / "data")) == 10


def test_a_thread_that_outlives_its_program_is_told_why_it_cannot_go_on(tmp_path):
    wait_and_make = "import threading\nthreading.main_thread().join()\n" + MAKE
    (tmp_path / "make.py").write_text("import threading\nimport data_tools.toy_faces\n"
                                      f"threading.Thread(target=exec, args=[{wait_and_make!r}]).start()\n")
    done = subprocess.run([sys.executable, "make.py"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.stderr.startswith("error: the main program has ended before") and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["make.py"]


def test_two_threads_may_start_workers_at_once():
    main, backend, ends = sys.modules["__main__"], os.environ.get("VAE_BACKEND"), []
    threads = [threading.Thread(target=lambda: ends.extend(map_rows(total, 2, 1, "adding", items=[1, 2])))
               for _ in range(2)]
    for act in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            act(thread)
    assert ends == [(0, 2, 3)] * 2
    assert (sys.modules["__main__"], os.environ.get("VAE_BACKEND")) == (main, backend)


@pytest.mark.parametrize(("item", "error"), [("stop", "^rows 2 to 4 are bad$"), ("die", "worker process was killed")])
def test_what_goes_wrong_in_a_worker_is_raised_here(item, error):
    with pytest.raises(DatasetError, match=error):
        list(map_rows(total, 6, workers=1, description="adding", chunk=2, items=[1, 2, 3, item, 5, 6]))


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_while_workers_start_counts_at_the_end():
    other = threading.Thread(target=time.sleep, args=(1,), daemon=True)
    other.start()
    finished = []

    def start_workers(task, *arguments):
        signal.pthread_kill(other.ident, signal.SIGINT)  # any thread may get it, and the first one has it blocked
        time.sleep(0.05)  # time for Python to notice
        finished.append(True)  # so that no worker is left half started

    with pytest.raises(KeyboardInterrupt):
        submit_all(SimpleNamespace(map=start_workers), print, [(0, 1)])
    assert finished
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
