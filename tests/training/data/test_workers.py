"""Workers are replaced if they hang when they are forked, and end when nobody needs them."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import islice
from multiprocessing import resource_sharer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from coserve_training.data import workers
from coserve_training.data.workers import ParallelMap
from coserve_training.errors import DataError

hang: Callable[[], bool] | None = None
"""Tells a forked process to hang before its first instruction."""


def hang_in_child() -> None:
    """Hang, as on a lock that another thread held at the fork."""
    if hang is not None and hang():
        time.sleep(600)


os.register_at_fork(after_in_child=hang_in_child)


def pid_and_square(item: int) -> tuple[int, int]:
    return os.getpid(), item * item


@pytest.mark.parametrize(("hanging", "forked"), [(0, True), (1, True), (100, False)])
def test_a_worker_that_hangs_at_its_fork_is_replaced(
    hanging: int, forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_among_first() -> bool:
        with (tmp_path / "forks").open("a") as file:
            file.write("x")
        return (tmp_path / "forks").stat().st_size <= hanging

    monkeypatch.setattr(workers, "START_SECONDS", (1.0, 5.0) if forked else (0.5, 0.5))
    monkeypatch.setitem(globals(), "hang", is_among_first)
    results = ParallelMap(pid_and_square, list(range(8)), 2)
    for _ in range(2):
        rows = [(int(pid), int(square)) for pid, square in results]
        assert [square for _, square in rows] == [item * item for item in range(8)]
        assert (os.getpid() not in {pid for pid, _ in rows}) == forked
    monkeypatch.setitem(globals(), "hang", None)


def test_workers_stay_after_a_whole_epoch() -> None:
    parallel = ParallelMap(pid_and_square, list(range(8)), 2)
    pids = set()
    for _ in range(3):
        iteration = iter(parallel)
        pids |= {int(pid) for pid, _ in islice(iteration, 8)}
        iteration.close()  # type: ignore[attr-defined]
    parallel.close()
    assert len(pids) == 2


@pytest.mark.parametrize("end", ["close", "abandon", "fail"])
def test_workers_end_when_they_are_not_needed(end: str) -> None:
    before = set(multiprocessing.active_children())
    parallel = ParallelMap(pid_and_square if end != "fail" else fail, list(range(20)), 2)
    if end == "close":
        list(parallel)
        assert len(set(multiprocessing.active_children()) - before) == 2
        parallel.close()
    elif end == "abandon":
        iteration = iter(parallel)
        next(iteration)
        del iteration
    else:
        with pytest.raises(DataError, match="as told"):
            list(parallel)
    assert set(multiprocessing.active_children()) == before
    if end != "fail":
        assert [square for _, square in parallel] == [item * item for item in range(20)]


@pytest.mark.parametrize("between", [False, True])
def test_a_dead_worker_is_an_error_of_the_next_result_and_of_nothing_else(between: bool) -> None:
    parallel = ParallelMap(pid_and_square, list(range(40)), 1)
    iteration = iter(parallel)
    pid = int(next(iteration)[0])
    if between:  # two epochs
        list(iteration)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)  # The consumer computes; torch would raise here.
    with pytest.raises(DataError, match="a process that reads images was killed"):
        list(parallel if between else iteration)
    assert [square for _, square in parallel] == [item * item for item in range(40)]


def test_a_worker_is_dead_if_its_results_can_no_longer_be_fetched() -> None:
    """A process that is killed loses its connections, and then ends."""
    iteration = iter(ParallelMap(lose_connections_and_end, list(range(40)), 1))
    next(iteration)
    time.sleep(0.4)
    with pytest.raises(DataError, match="a process that reads images was killed"):
        list(iteration)


def test_an_error_in_a_worker_is_not_its_death() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        list(ParallelMap(fail_otherwise, list(range(40)), 1))


def lose_connections_and_end(item: int) -> npt.NDArray[np.uint8]:
    if item == 0:
        threading.Timer(0.2, resource_sharer.stop).start()
        threading.Timer(0.6, os._exit, [1]).start()
    return np.zeros(1, np.uint8)


def fail(item: int) -> int:
    raise DataError("as told")


def fail_otherwise(item: int) -> int:
    raise RuntimeError("a bug")
