"""Files written whole and folders held, also where a file system refuses what helps with it."""

import errno
import os
import stat
import subprocess
import sys

import pytest
from filelock import FileLock

from vae_np.disk.files import hold, replacing
from vae_np.errors import TrainingError

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has neither fsync of a folder nor flock")


@posix
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_written_whole_is_a_success_where_folders_cannot_be_brought_to_disk(tmp_path, monkeypatch, number):
    original, refused = os.fsync, []

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            refused.append(file)
            raise OSError(number, os.strerror(number))
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("whole", encoding="utf-8")
    assert refused
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole"


def test_who_holds_a_folder_may_hold_it_again_and_lets_go_at_once(tmp_path):
    other = FileLock(tmp_path / ".lock")  # as another program has it
    with other, pytest.raises(TrainingError, match="another training is writing to"):
        hold(tmp_path)
    lock = hold(tmp_path)
    assert hold(tmp_path) is lock
    program = [sys.executable, "-c", "import sys; from vae_np.disk.files import hold; hold(sys.argv[1])", str(tmp_path)]
    assert subprocess.run(program, capture_output=True, check=False).returncode == 1
    lock.release(force=True)
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_where_there_are_no_locks_a_line_says_so_and_that_is_all(tmp_path, monkeypatch, capsys, number):
    import fcntl

    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if number == errno.EIO:  # a disk that breaks is no file system without locks
        with pytest.raises(OSError, match=os.strerror(number)):
            hold(tmp_path)
    else:
        (tmp_path / ".a.partial-1").touch()  # of a program that may be at work: nobody knows
        hold(tmp_path).release(force=True)
        assert capsys.readouterr().err == (f"note: the file system of {tmp_path} has no locks ({os.strerror(number)}); "
                                           "see to it that no other training writes there\n")
        assert (tmp_path / ".a.partial-1").exists()
