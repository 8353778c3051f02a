"""How many cores a process may use, and that BLAS is held to one thread as long as anybody needs it."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from threadpoolctl import threadpool_info

from vae_np.fast import cores
from vae_np.fast.cores import one_blas_thread


def test_blas_is_let_go_by_the_last_of_several_threads_to_leave():
    def blas_threads():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    before, turns = blas_threads(), [threading.Event() for _ in range(4)]

    def hold(enter, leave):
        turns[enter].wait(20)
        with one_blas_thread():
            turns[enter + 1].set()
            turns[leave].wait(20)
        return blas_threads()

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(hold, 0, 2), threads.submit(hold, 1, 3)
        turns[0].set()
        assert first.result() <= {1}
        assert blas_threads() <= {1}
        turns[3].set()
        assert second.result() == before
    assert blas_threads() == before
    with one_blas_thread():
        assert blas_threads() <= {1}


@pytest.mark.parametrize(("files", "expected"), [
    ({}, math.inf), ({"cpu.max": "max 100000\n"}, math.inf), ({"cpu.max": "150000 100000\n"}, 2),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4)])
def test_the_quota_of_a_container(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.quota(tmp_path) == expected


@pytest.mark.parametrize(("neighbours", "expected"), [(1, 5), (2, 2), (5, 1), (9, 1)])
def test_the_processes_of_a_machine_share_its_cores(monkeypatch, neighbours, expected):
    monkeypatch.setattr(cores, "allowed", lambda: set(range(8)))
    monkeypatch.setattr(cores, "quota", lambda: 5)
    monkeypatch.setattr(cores, "neighbours", neighbours)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cores.available_cores() == expected


@pytest.mark.parametrize(("asked", "expected"), [("1", 1), ("3,2", 3), ("", 5), ("0", 5), ("many", 5), ("64", 5)])
def test_no_more_cores_than_there_are_or_than_omp_num_threads(monkeypatch, asked, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "quota", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cores.available_cores() == expected
