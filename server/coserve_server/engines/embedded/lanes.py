"""Lanes: threads that run members, and how an ensemble shares the cores among them."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_S = 1
"""Grace period for a run that was told to stop; until it ends, the lane's next runs wait."""


@dataclass(frozen=True)
class ThreadBudget:
    """How an ensemble shares the cores: `lanes` members at once, each on `threads` threads."""

    lanes: int
    threads: int

    @classmethod
    def share(cls, members: int, cores: int, threads: int | None = None) -> "ThreadBudget":
        """Divide `cores` among `members`, so that `lanes * threads <= cores`.

        Args:
            threads: threads per member, capped at `cores`; None for an even share.
        """
        if threads is not None:
            threads = min(threads, cores)
            return cls(min(members, cores // threads), threads)
        lanes = min(members, cores)
        return cls(lanes, cores // lanes)


class Lane:
    """A thread that runs members one after another.

    Attributes:
        threads: how many threads a library may use to run a member, this one included.
        device: where members run, for users.
    """

    def __init__(
        self, name: str, pinned: tuple[int, ...] | None = None, threads: int = 1, device: str = "cpu"
    ) -> None:
        """Start the thread.

        Args:
            pinned: cores to keep the thread on; None for all.
        """
        self._thread = ThreadPoolExecutor(1, name)
        self._abandoned: dict[Future[Any], float] = {}
        self._waiting: dict[Future[Any], Callable[[], None]] = {}
        self.threads = threads
        self.device = device
        if pinned:
            self._thread.submit(os.sched_setaffinity, 0, pinned).result()
            self.device = f"cpu:{','.join(map(str, pinned))}"

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call behind those before it."""
        return self._thread.submit(function, *args, **kwargs)

    def enqueue(self, function: Callable[[], None], left_out: Callable[[], None]) -> Future[None]:
        """Queue a call; `left_out` is called instead if `leave_out` drops it."""
        run = self._thread.submit(function)
        self._waiting[run] = left_out
        run.add_done_callback(self._waiting.pop)
        return run

    def leave_out(self) -> None:
        """Drop the calls that wait behind a stuck run."""
        if self.stuck:
            for run, left_out in list(self._waiting.items()):
                if run.cancel():
                    left_out()

    @property
    def stuck(self) -> bool:
        """Whether an abandoned run has outlasted its grace period: a thread cannot be killed."""
        latest = time.monotonic() - PATIENCE_S
        return any(since <= latest for since in list(self._abandoned.values()))

    def abandon(self, run: Future[Any]) -> None:
        """Note that nobody waits for a run any more."""
        self._abandoned[run] = time.monotonic()
        run.add_done_callback(self._abandoned.pop)

    def close(self) -> None:
        """End the thread after its current run, and wait for that unless the run is abandoned."""
        self._thread.shutdown(wait=not self._abandoned, cancel_futures=True)
