"""Workers that hang when they are forked are replaced."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coserve_training.data import workers
from coserve_training.data.workers import ParallelMap

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
