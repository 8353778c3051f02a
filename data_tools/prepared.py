"""Write a prepared dataset (see vae_np/data.py): in parallel, and whole or not at all."""

import json
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vae_np.data import FORMAT_VERSION, SPLITS, checksum
from vae_np.errors import DatasetError

MAX_WORKERS = 61  # as many as Windows can wait for


class DatasetWriter:
    """Build a dataset in a staging folder beside `folder`, and rename it once it is whole.

    Within a `with` block: worker processes write rows of `images_path`, a uint8 (count, size, size, 3) .npy file, then
    `finish` writes the rest. Leaving the block without `finish`, by an exception or Ctrl-C, removes what was written.

    Raises DatasetError if `folder` exists, unless overwrite is given and it holds a prepared dataset.
    """

    def __init__(self, folder, count, size, overwrite=False):
        self.folder = Path(folder).resolve()
        self.count = count
        self.overwrite = overwrite
        self._check_target()
        self.staging = self.folder.with_name(f".{self.folder.name}.partial-{os.getpid()}")
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

    def __enter__(self):
        self.staging.mkdir(parents=True)
        try:
            np.lib.format.open_memmap(self.images_path, mode="w+", dtype=np.uint8, shape=self.shape).flush()
        except BaseException:  # __exit__ follows only an __enter__ that succeeded
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        shutil.rmtree(self.staging, ignore_errors=True)

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
        self._check_target()  # again: another program may have made the folder meanwhile
        replaced = self.staging.with_name(self.staging.name + "-replaced")
        if self.folder.exists():
            os.replace(self.folder, replaced)
        os.replace(self.staging, self.folder)
        shutil.rmtree(replaced, ignore_errors=True)


def map_rows(task, count, workers, description, chunk=64, items=None):
    """Run task(start, stop) for chunks of range(count) in worker processes; yield (start, stop, result) in order.

    task is picklable (a module's function, or functools.partial of one), since workers are spawned: the one way of
    starting them that every operating system has. Given `count` items, such as files, it runs
    task(start, stop, items[start:stop]). A bar on standard error counts images.

    Raises whatever a task raises, and DatasetError if a worker is killed.
    """
    spans = [(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    inputs = spans if items is None else [(start, stop, items[start:stop]) for start, stop in spans]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, MAX_WORKERS), context, initializer=ignore_interrupts)
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
    """pool.map over tuples of arguments, with workers, which it starts, that Ctrl-C cannot reach while they start.

    Processes inherit which signals are blocked, except on Windows, which has no such thing. In the parent, a Ctrl-C
    that comes meanwhile counts at the end: any of its threads may get it, which a handler notes.
    """
    noted = []
    handler = signal.signal(signal.SIGINT, lambda *_: noted.append(True))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        return pool.map(task, *zip(*inputs, strict=True))
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


def ignore_interrupts():
    """Ignore Ctrl-C, which reaches every process of a terminal: only the parent stops, and then cleans up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
