"""Lanes: threads that run members, and how an ensemble shares the cores among them."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from coserve_server.engines.embedded.pins import Pin

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_S = 1
"""Grace period for a run that was told to stop; until it ends, the lane's next runs wait."""


@dataclass(frozen=True)
class ThreadBudget:
    """How an ensemble shares the cores.

    Attributes:
        lanes: members that run at once in each copy.
        threads: threads of each.
        copies: copies of the ensemble, which run batches side by side on cores that one leaves free.
    """

    lanes: int
    threads: int
    copies: int = 1

    @classmethod
    def share(cls, members: int, nodes: Sequence[int], threads: int | None = None) -> "ThreadBudget":
        """Divide the cores among `members`, so that the threads of each fit into one NUMA node.

        Args:
            nodes: number of cores in each node.
            threads: threads per member, at most all cores; None for an even share.
        """
        cores = sum(nodes)
        if threads is None:
            lanes = min(members, cores)
            share = range(cores // lanes, 0, -1)
            threads = next(size for size in share if _rooms(nodes, size) >= lanes)
        threads = min(threads, cores)
        # More threads than a node has cores must span several.
        rooms = _rooms(nodes, threads) or cores // threads
        lanes = min(members, rooms)
        return cls(lanes, threads, rooms // lanes)


def _rooms(nodes: Sequence[int], size: int) -> int:
    """Return how many groups of cores, `size` each, fit into the nodes."""
    return sum(cores // size for cores in nodes)


@dataclass(frozen=True)
class _Run:
    """Callbacks of a queued call: for when it is dropped, and to make it end early."""

    left_out: Callable[[], None]
    stop: Callable[[], None]


class Lane:
    """A thread that runs members one after another.

    Attributes:
        cores: numbers of the cores that its members occupy, pinned or not; on GPUs, those of the GPUs.
        threads: how many threads a library may use to run a member, this one included.
        device: where members run, for users.
        pin: keeps the thread on cores of its own; None if it may run on all.
    """

    def __init__(
        self,
        name: str,
        pinned: tuple[int, ...] | None = None,
        threads: int = 1,
        device: str = "cpu",
        *,
        cores: Iterable[int] = (),
    ) -> None:
        """Start the thread.

        Args:
            pinned: cores to keep the thread on, if the system allows it; None for all.
        """
        self._thread = ThreadPoolExecutor(1, name)
        self._abandoned: dict[Future[Any], float] = {}
        self._runs: dict[Future[Any], _Run] = {}
        self.cores = frozenset(cores)
        self.threads = threads
        self.device = device
        self.pin = self._thread.submit(Pin.this_thread, pinned).result() if pinned else None
        if self.pin:
            self.device = f"cpu:{','.join(map(str, self.pin.cores))}"

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call behind those before it."""
        return self._thread.submit(function, *args, **kwargs)

    def enqueue(
        self, function: Callable[[], None], left_out: Callable[[], None], stop: Callable[[], None]
    ) -> Future[None]:
        """Queue a call.

        Args:
            left_out: called instead if `leave_out` drops the call.
            stop: makes the call end early; called from another thread.
        """
        pin = self.pin
        if pin and not pin.working:
            pin.start()
        run = self._thread.submit(self._run_on, pin, function) if pin else self._thread.submit(function)
        self._runs[run] = _Run(left_out, stop)
        run.add_done_callback(self._runs.pop)
        return run

    def _run_on(self, pin: Pin, function: Callable[[], None]) -> None:
        # Queued while the run before it ended.
        if not pin.working:
            pin.start()
        function()
        # This run is among them until its future is done.
        if len(self._runs) > 1:
            pin.start()
        else:
            pin.stop()

    def leave_out(self) -> None:
        """Drop the calls that wait behind a stuck run."""
        if self.stuck:
            for run, call in list(self._runs.items()):
                if run.cancel():
                    call.left_out()

    @property
    def runs(self) -> int:
        """Number of calls that run or wait."""
        return len(self._runs)

    @property
    def stuck(self) -> bool:
        """Whether an abandoned run has outlasted its grace period: a thread cannot be killed."""
        latest = time.monotonic() - PATIENCE_S
        return any(since <= latest for since in list(self._abandoned.values()))

    def abandon(self, run: Future[Any]) -> None:
        """Note that nobody waits for a run any more."""
        self._abandoned.setdefault(run, time.monotonic())
        run.add_done_callback(lambda run: self._abandoned.pop(run, None))

    def stop(self) -> None:
        """Drop the waiting calls, and make the current one end early even if a request still needs it."""
        for run, call in list(self._runs.items()):
            if not run.cancel():
                call.stop()
                self.abandon(run)

    def close(self) -> None:
        """Stop all calls and end the thread; a run that outlasts its grace period is left behind."""
        self.stop()
        abandoned = dict(self._abandoned)
        left = max(abandoned.values(), default=0) + PATIENCE_S - time.monotonic()
        running = wait(abandoned, max(0, left)).not_done
        self._thread.shutdown(wait=not running, cancel_futures=True)
