"""Write a prepared dataset (see vae_np/disk/dataset.py): in parallel, and whole or not at all."""

import errno
import glob
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import threading
import types
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from vae_np.disk.dataset import FORMAT_VERSION, SPLITS, checksum
from vae_np.errors import DatasetError
from vae_np.fast.signals import uninterrupted

MAX_WORKERS = 61  # as many as Windows can wait for
LOCK = ".lock"  # in a staging folder: held as long as its program lives, however it ends
REPLACED = ".replaced"  # in a staging folder: the dataset whose place it takes
BYTES_BESIDE = 512  # of an image: its attributes, factors and name take less
STARTING = threading.Lock()  # one thread after the other sets up what its workers inherit


class DatasetWriter:
    """Build a dataset in a staging folder beside `folder`, and rename it once it is whole.

    Within a `with` block: worker processes write rows of `images_path`, a uint8 (count, size, size, 3) .npy file, then
    `finish` writes the rest. Leaving the block without `finish`, by an exception or Ctrl-C, removes what was written.
    What a program that was killed has left is removed by the next one that writes to the same folder.

    Raises DatasetError if `folder` exists, unless overwrite is given and it holds a prepared dataset and nothing else,
    and if the disk has too little room.
    """

    def __init__(self, folder, count, size, overwrite=False):
        self.folder = Path(folder).resolve()
        self.count = count
        self.overwrite = overwrite
        # A name that no earlier program had: should one of its workers still run, it writes to another file.
        self.staging = self.folder.with_name(f".{self.folder.name}.partial-{secrets.token_hex(4)}")
        self.lock = FileLock(self.staging / LOCK)
        self.images_path = self.staging / "images.npy"
        self.shape = (count, size, size, 3)

    def _check_target(self):
        if not self.folder.exists():
            return
        if not self.overwrite:
            raise DatasetError(f"{self.folder} exists; choose another --out or give --overwrite")
        if not (self.folder / "dataset.json").is_file():
            raise DatasetError(f"{self.folder} exists and is not a prepared dataset, so --overwrite leaves it alone; "
                               "choose another --out")
        others = [name for name in sorted(os.listdir(self.folder))
                  if not name.endswith(".npy") and name not in ("dataset.json", LOCK, REPLACED, ".DS_Store")]
        if others:
            raise DatasetError(f"{self.folder} exists and has more than a prepared dataset ({others[0]}), so "
                               "--overwrite leaves it alone; choose another --out")

    def _check_room(self):
        needed = self.count * (self.shape[1] ** 2 * 3 + BYTES_BESIDE)
        free = shutil.disk_usage(self.staging).free
        if needed > free:
            raise DatasetError(f"{self.folder} needs {needed / 1e6:,.1f} MB, and its disk has {free / 1e6:,.1f} MB "
                               "free; make room, or choose another --out")

    def __enter__(self):
        remove_leftovers(self.folder)
        self._check_target()
        self.staging.mkdir(parents=True)
        try:
            self.lock.acquire(timeout=0)
            self._check_room()
            np.lib.format.open_memmap(self.images_path, mode="w+", dtype=np.uint8, shape=self.shape).flush()
        except BaseException as error:  # __exit__ follows only an __enter__ that succeeded
            self.__exit__()
            if getattr(error, "errno", None) == errno.ENODEV:
                raise DatasetError(f"the file system of {self.folder} cannot map a file that several processes write; "
                                   "choose an --out on another, and copy the dataset afterwards") from None
            raise
        return self

    def __exit__(self, *exception):
        self.lock.release()
        discard(self.staging, self.folder)

    def keep(self, rows):
        """Keep only these rows of the images, in this order; they ascend, so that each moves to where none waits."""
        width = int(np.prod(self.shape[1:]))
        self.count = len(rows)
        self.shape = (self.count, *self.shape[1:])
        # With a memmap, a full disk would kill this process.
        with open(self.images_path, "rb+") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            for new, old in enumerate(rows):
                file.seek(start + old * width)
                image = file.read(width)
                file.seek(start + new * width)
                file.write(image)
            file.truncate(start + self.count * width)
            file.seek(0)
            header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == start  # NumPy leaves room in it for any number of rows

    def finish(self, *, source, crop, attributes, attribute_names, splits, file_names, arrays=None, info=None):
        """Write attributes, further arrays and dataset.json, then move the dataset to its place.

        splits gives the number of images of each split, in the order in which they stand: train, validation, test.
        """
        assert sum(splits.values()) == self.count == len(attributes) == len(file_names)
        arrays = {"attributes": np.asarray(attributes, dtype=np.bool_), **(arrays or {})}
        for name, array in arrays.items():
            np.save(self.staging / f"{name}.npy", array)
        description = {
            "format_version": FORMAT_VERSION,
            "source": source,
            "size": self.shape[1],
            "crop": crop,
            "splits": {name: splits[name] for name in SPLITS},
            "attribute_names": list(attribute_names),
            **(info or {}),
            "checksums": {f"{name}.npy": checksum(self.staging / f"{name}.npy") for name in ("images", *arrays)},
            "file_names": list(file_names),
        }
        (self.staging / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        for path in (*self.staging.glob("*.npy"), self.staging / "dataset.json"):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())  # else after a power cut the name might be there and the pixels not
        self._check_target()  # again: another program may have made the folder meanwhile
        if self.folder.exists():
            os.replace(self.folder, self.staging / REPLACED)
        if os.name == "nt":  # which renames no folder with an open file in it
            self.lock.release()
        os.replace(self.staging, self.folder)
        self.lock.release()
        (self.folder / LOCK).unlink(missing_ok=True)
        shutil.rmtree(self.folder / REPLACED, ignore_errors=True)


def remove_leftovers(folder):
    """Remove the staging folders beside `folder` whose program was killed, which shows in that nobody holds their lock.

    A program that was killed between the two renames of `finish` has left the older dataset there: it goes back.
    """
    for lock in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*/{LOCK}"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            continue
        discard(lock.parent, folder)
        print(f"removed {lock.parent}, left by a run that was killed")


def discard(staging, folder):
    """Remove a staging folder; the dataset that it was about to replace goes back to its place."""
    if (staging / REPLACED).exists() and not folder.exists():
        os.replace(staging / REPLACED, folder)
    shutil.rmtree(staging, ignore_errors=True)


def map_rows(task, count, workers, description, chunk=64, items=None):
    """Run task(start, stop) for chunks of range(count) in worker processes; yield (start, stop, result) in order.

    task is a function of a module other than the main program, or functools.partial of one, since workers are spawned:
    the one way of starting them that every operating system has. Given `count` items, such as files, it runs
    task(start, stop, items[start:stop]). A bar on standard error counts images.

    Raises whatever a task raises, and DatasetError if a worker is killed, or none can be started.
    """
    if not threading.main_thread().is_alive():  # and Python starts no more processes
        raise DatasetError("the main program has ended before one of its threads; have it wait (Thread.join)")
    chunk = min(chunk, -(-count // workers))  # so that few rows are work for all
    spans = [(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    inputs = spans if items is None else [(start, stop, items[start:stop]) for start, stop in spans]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, MAX_WORKERS), context, initializer=begin_worker)
    with tqdm(total=count, desc=description, unit="img") as bar, pool:
        try:
            for (start, stop), result in zip(spans, submit_all(pool, task, inputs), strict=True):
                yield start, stop, result
                bar.update(stop - start)
        except BrokenProcessPool:
            raise DatasetError("a worker process was killed: the disk or the memory may be full; make room, or try "
                               "--workers 1") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def submit_all(pool, task, inputs):
    """pool.map over tuples of arguments, with workers, which it starts, that Ctrl-C cannot reach while they start."""
    with uninterrupted(), inherited_by_workers():
        return pool.map(task, *zip(*inputs, strict=True))


@contextmanager
def inherited_by_workers():
    """In this block, processes that start have no GPU, of which each would take a part, Ctrl-C blocked, and no program.

    They would run the main program once more, as far as it goes without a guard: no task is in it, one that a script
    begins would begin again and again, and one from standard input is gone. Windows has no blocked signals.
    """
    with STARTING:
        main, backend = sys.modules["__main__"], os.environ.get("VAE_BACKEND")
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
        sys.modules["__main__"], os.environ["VAE_BACKEND"] = types.ModuleType("__main__"), "numpy"
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            os.environ.pop("VAE_BACKEND")
            if backend is not None:
                os.environ["VAE_BACKEND"] = backend
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def begin_worker():
    """Have a worker process end with its parent, and keep the memory that its arrays leave.

    glibc returns memory to the system once more is free than twice the largest block that was freed so far. Left at
    that, every face may wait for fresh pages, for a quarter of its time.
    """
    stay_with_parent()
    np.empty(1 << 24, dtype=np.uint8)  # 16 MB, freed at once and never written to


def stay_with_parent():
    """Have a worker end when its parent does, and not before.

    Ctrl-C reaches every process of a terminal: only the parent stops, and then cleans up. A parent that is killed tells
    nobody: without the thread its workers would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Wait for the parent process to end, then end this one at once."""
    multiprocessing.parent_process().join()
    os._exit(1)
