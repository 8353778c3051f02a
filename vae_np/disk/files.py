"""Write a file whole or not at all, and keep a folder to one program."""

import errno
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vae_np.errors import TrainingError

# What a file system says that has no locks, as some of NFS, Lustre and FUSE.
NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL


@contextmanager
def replacing(path):
    """A temporary path beside `path` to write to; at the end of the block it is brought to disk and renamed to `path`.

    Whatever happens, path holds either what it held before or all that is new. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened, nor does it have to be
            with suppress(OSError):  # some file systems, such as CIFS, refuse; the file is whole all the same
                folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)  # a file is on disk under its new name only when its folder says so
                finally:
                    os.close(folder)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)  # a full disk is reported without
        raise
    finally:
        partial.unlink(missing_ok=True)


def hold(folder):
    """Make a folder and hold it until the result is released or the program ends. TrainingError if another holds it.

    What this program holds it may hold again, as when a cell of a notebook is run twice; release(force=True) ends all.
    Where the file system has no locks, a note says so, and that is all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / ".lock", is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(f"another training is writing to {folder}; wait for it, or give another --out") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"note: the file system of {folder} has no locks ({error.strerror}); see to it that no other training "
              "writes there", file=sys.stderr)
        return lock
    for partial in folder.glob(".*.partial-*"):
        partial.unlink()  # of a program that was killed while it wrote, since no other is at work here
    return lock
