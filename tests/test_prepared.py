import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_tools import check
from data_tools.prepared import DatasetWriter, map_rows, submit_all
from vae_np.disk.dataset import Dataset, checksum
from vae_np.errors import DatasetError


def write(folder, value=7, **options):
    with DatasetWriter(folder, count=2, size=8, **options) as writer:
        np.load(writer.images_path, mmap_mode="r+")[...] = value
        writer.finish(source="flat", crop="none", attributes=np.zeros((2, 1)), attribute_names=["Bald"],
                      splits={"train": 1, "validation": 1, "test": 0}, file_names=["a", "b"],
                      arrays={"factors": np.arange(4.0).reshape(2, 2)}, info={"seed": 3})


def test_finish_writes_all_files_with_their_checksums(tmp_path):
    write(tmp_path / "deep" / "data")
    folder = tmp_path / "deep" / "data"
    assert sorted(os.listdir(folder)) == ["attributes.npy", "dataset.json", "factors.npy", "images.npy"]
    assert os.listdir(folder.parent) == ["data"]
    data = Dataset(folder)
    assert np.all(data.images == 7)
    assert data.info["seed"] == 3
    arrays = ("images.npy", "attributes.npy", "factors.npy")
    assert data.info["checksums"] == {name: checksum(folder / name) for name in arrays}
    np.testing.assert_array_equal(np.load(folder / "factors.npy"), [[0, 1], [2, 3]])


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path, stop):
    with pytest.raises(stop), DatasetWriter(tmp_path / "data", count=2, size=8) as writer:
        assert writer.images_path.is_file()
        raise stop
    assert os.listdir(tmp_path) == []


def test_images_that_cannot_be_made_leave_nothing_behind(tmp_path, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "open_memmap", disk_full)
    with pytest.raises(OSError, match="no space"), DatasetWriter(tmp_path / "data", count=2, size=8):
        pass
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused(tmp_path):
    write(tmp_path / "data")
    with pytest.raises(DatasetError, match="exists; choose another --out or give --overwrite"):
        write(tmp_path / "data", value=9)
    assert np.all(Dataset(tmp_path / "data").images == 7)


def test_overwrite_replaces_a_dataset(tmp_path):
    write(tmp_path / "data")
    write(tmp_path / "data", value=9, overwrite=True)
    assert np.all(Dataset(tmp_path / "data").images == 9)
    assert os.listdir(tmp_path) == ["data"]


def test_overwrite_spares_a_folder_of_something_else(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="not a prepared dataset"):
        write(tmp_path / "data", overwrite=True)
    assert (tmp_path / "data" / "thesis.txt").is_file()


def test_overwrite_spares_what_lies_beside_a_dataset(tmp_path):
    write(tmp_path / "data")
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match=r"has more than a prepared dataset \(thesis.txt\)"):
        write(tmp_path / "data", value=9, overwrite=True)
    assert np.all(Dataset(tmp_path / "data").images == 7)


def test_the_old_dataset_is_there_until_the_new_one_is_whole(tmp_path):
    write(tmp_path / "data")
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "data", 2, 8, overwrite=True):
        assert np.all(Dataset(tmp_path / "data").images == 7)
        raise KeyboardInterrupt
    assert np.all(Dataset(tmp_path / "data").images == 7)
    assert os.listdir(tmp_path) == ["data"]


def test_the_old_dataset_goes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write(tmp_path / "data")
    replace = os.replace

    def second_fails(source, target):
        if Path(target) == tmp_path / "data" and Path(source).name != ".replaced":
            raise PermissionError("a program has a file of it open")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(PermissionError):
        write(tmp_path / "data", value=9, overwrite=True)
    assert np.all(Dataset(tmp_path / "data").images == 7)
    assert os.listdir(tmp_path) == ["data"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    with pytest.raises(DatasetError, match=r"needs 12.8 MB, and its disk has 2.0 MB free; make room"), \
            DatasetWriter(tmp_path / "data", count=1000, size=64):
        pass
    assert os.listdir(tmp_path) == []


def test_keep_leaves_the_other_rows_out(tmp_path):
    with DatasetWriter(tmp_path / "data", count=300, size=8) as writer:
        images = np.load(writer.images_path, mmap_mode="r+")
        images[...] = np.arange(300).reshape(-1, 1, 1, 1) % 256
        images.flush()
        del images
        rows = [0, *range(5, 250), 299]
        writer.keep(rows)
        writer.finish(source="flat", crop="none", attributes=np.zeros((247, 0)), attribute_names=[],
                      splits={"train": 247, "validation": 0, "test": 0}, file_names=[str(row) for row in rows])
    data = Dataset(tmp_path / "data")
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], np.array(rows) % 256)
    data.check_sums()


KILLED = """
import os, sys, time
from data_tools.prepared import DatasetWriter, map_rows

def work(start, stop):
    print(os.getpid(), flush=True)
    time.sleep(0 if "late" in sys.argv else 600)

if __name__ == "__main__":
    folder = sys.argv[1]
    with DatasetWriter(folder, count=2, size=8, overwrite=True) as writer:
        list(map_rows(work, 2, 2, "sleeping", chunk=1))
        if sys.argv[2] == "late":
            os.rename(folder, writer.staging / ".replaced")
            print("swapping", flush=True)
            time.sleep(600)
"""


def start_killed(tmp_path, when):
    """A program in the middle of writing to tmp_path / "data", and the first thing that it or its workers printed."""
    (tmp_path / "killed.py").write_text(KILLED)
    program = subprocess.Popen([sys.executable, tmp_path / "killed.py", tmp_path / "data", when], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return program, [program.stdout.readline().strip() for _ in range(3 if when == "late" else 2)]


@pytest.mark.skipif(os.name != "posix", reason="kills a program as POSIX systems do")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM] if os.name == "posix" else [])
def test_what_a_killed_program_leaves_goes_with_the_next_run(tmp_path, capsys, number):
    program, workers = start_killed(tmp_path, "early")
    write(tmp_path / "data")  # another run leaves alone what a live one is writing
    assert len(list(tmp_path.glob(".data.partial-*/images.npy"))) == 1
    assert capsys.readouterr().out == ""
    program.send_signal(number)
    try:
        program.communicate(timeout=20)  # ends with the last of its workers, since they hold its output, too
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)
    write(tmp_path / "data", value=9, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["data", "killed.py"]
    assert capsys.readouterr().out.count("left by a run that was killed") == 1


@pytest.mark.skipif(os.name != "posix", reason="kills a program as POSIX systems do")
def test_a_program_killed_while_it_swaps_loses_no_dataset(tmp_path):
    write(tmp_path / "data")
    program, _ = start_killed(tmp_path, "late")
    program.kill()
    program.communicate(timeout=20)
    assert not (tmp_path / "data").exists()
    with pytest.raises(DatasetError, match="exists"), DatasetWriter(tmp_path / "data", 2, 8):
        pytest.fail("was to be refused before any work")
    assert np.all(Dataset(tmp_path / "data").images == 7)
    assert sorted(os.listdir(tmp_path)) == ["data", "killed.py"]


def test_check_says_whether_a_dataset_is_whole(tmp_path, capsys):
    write(tmp_path / "data")
    assert check.main([str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out == "whole: Dataset(flat, 8x8, crop none: 1 train, 1 validation, 0 test)\n"
    np.save(tmp_path / "data" / "factors.npy", np.zeros((2, 2)))
    assert check.main([str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'data' / 'factors.npy'} is missing or damaged")
    assert error.count("\n") == 1


def test_a_folder_that_appears_meanwhile_is_spared(tmp_path):
    with pytest.raises(DatasetError, match="exists"), DatasetWriter(tmp_path / "data", count=0, size=8) as writer:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.txt").write_text("years of work")
        writer.finish(source="flat", crop="none", attributes=[], attribute_names=[], file_names=[],
                      splits={"train": 0, "validation": 0, "test": 0})
    assert os.listdir(tmp_path) == ["data"]
    assert os.listdir(tmp_path / "data") == ["thesis.txt"]


def total(start, stop, items):
    """A task for workers: the sum of its items, or trouble where an item asks for it."""
    if "stop" in items:
        raise DatasetError(f"rows {start} to {stop} are bad")
    if "die" in items:
        os._exit(1)
    return sum(items)


def test_map_rows_gives_each_chunk_its_items_in_order(capsys):
    before = signal.getsignal(signal.SIGINT)
    results = list(map_rows(total, 5, workers=2, description="adding", chunk=2, items=[1, 2, 3, 4, 5]))
    assert results == [(0, 2, 3), (2, 4, 7), (4, 5, 5)]
    assert signal.getsignal(signal.SIGINT) is before
    assert "adding: 100%" in capsys.readouterr().err


def test_a_worker_s_error_arrives_as_it_was_raised():
    with pytest.raises(DatasetError, match=r"^rows 2 to 4 are bad$"):
        list(map_rows(total, 6, workers=1, description="adding", chunk=2, items=[1, 2, 3, "stop", 5, 6]))


def test_a_killed_worker_is_reported():
    with pytest.raises(DatasetError, match="worker process was killed"):
        list(map_rows(total, 2, workers=1, description="adding", chunk=1, items=[1, "die"]))


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("receiver", ["this thread", "another thread"])
def test_ctrl_c_while_workers_start_counts_at_the_end(receiver):
    done = threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)
    other.start()
    finished = []

    class Pool:
        def map(self, task, *arguments):
            thread = threading.main_thread() if receiver == "this thread" else other
            signal.pthread_kill(thread.ident, signal.SIGINT)
            time.sleep(0.05)  # time for Python to notice
            finished.append(True)  # so that no worker is left half started

    with pytest.raises(KeyboardInterrupt):
        submit_all(Pool(), print, [(0, 1)])
    done.set()
    assert finished
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def out_of_reach(start, stop):
    return (signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            and signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


@pytest.mark.skipif(os.name != "posix", reason="looks at the signal mask")
def test_ctrl_c_cannot_reach_a_worker():
    assert [result for *_, result in map_rows(out_of_reach, 4, 2, "test", chunk=1)] == [True] * 4
