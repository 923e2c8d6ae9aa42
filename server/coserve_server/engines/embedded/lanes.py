"""Threads for members, and how an ensemble shares the cores among them."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_S = 1
"""How long a run that was told to stop may take to do so, and the next ones wait for it."""


@dataclass(frozen=True)
class ThreadBudget:
    """How an ensemble shares the cores: `lanes` members at once, each on `threads` threads."""

    lanes: int
    threads: int

    @classmethod
    def share(cls, members: int, cores: int, threads: int | None = None) -> "ThreadBudget":
        """Divide `cores` among `members`, so that `lanes * threads <= cores`.

        Args:
            threads: of each member, at most `cores` of them; None for its even share.
        """
        if threads is not None:
            threads = min(threads, cores)
            return cls(min(members, cores // threads), threads)
        lanes = min(members, cores)
        return cls(lanes, cores // lanes)


class Lane:
    """A thread that runs members one after another, on cores of its own where `pinned` names them.

    Attributes:
        threads: on which a library may run a member, this one among them.
        device: where members run, for users.
    """

    def __init__(
        self, name: str, pinned: tuple[int, ...] | None = None, threads: int = 1, device: str = "cpu"
    ) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._abandoned: dict[Future[Any], float] = {}
        self._waiting: dict[Future[Any], Callable[[], None]] = {}
        self.threads, self.device = threads, device
        if pinned:
            self._thread.submit(os.sched_setaffinity, 0, pinned).result()
            self.device = f"cpu:{','.join(map(str, pinned))}"

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call; it runs after those before it."""
        return self._thread.submit(function, *args, **kwargs)

    def enqueue(self, function: Callable[[], None], left_out: Callable[[], None]) -> Future[None]:
        """Queue a call; `left_out` is called, by `leave_out`, where it is not to run any more."""
        run = self._thread.submit(function)
        self._waiting[run] = left_out
        run.add_done_callback(self._waiting.pop)
        return run

    def leave_out(self) -> None:
        """Give up what waits behind a run that does not end."""
        if self.stuck:
            for run, left_out in list(self._waiting.items()):
                if run.cancel():
                    left_out()

    @property
    def stuck(self) -> bool:
        """Whether a run that nobody waits for does not end: a thread cannot be killed."""
        latest = time.monotonic() - PATIENCE_S
        return any(since <= latest for since in list(self._abandoned.values()))

    def abandon(self, run: Future[Any]) -> None:
        """Note that nobody waits for a run any more."""
        self._abandoned[run] = time.monotonic()
        run.add_done_callback(self._abandoned.pop)

    def close(self) -> None:
        """End the thread after what it is at; wait for that unless nobody else does."""
        self._thread.shutdown(wait=not self._abandoned, cancel_futures=True)
