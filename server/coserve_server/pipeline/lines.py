"""Lines of requests for one ensemble that wait for their turn."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Protocol

from coserve_server.engines.base import BatchEngine, Images, gather
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.outcomes import BatchRun, Place, Share

OnBatch = Callable[[Ensemble, BatchRun], None]


class Line(Protocol):
    """What waits for a turn; a turn starts one batch or more."""

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble whose members run."""

    @property
    def waits(self) -> bool:
        """Whether anything waits."""

    def start(self, places: Sequence[Place], running: Sequence[BatchRun]) -> list[BatchRun]:
        """Give the engine the batches of one turn; none if waiting for the running ones gains more.

        Args:
            places: where they may run; at least one.
            running: batches of this line that have started there and are unfinished, the oldest first.

        Raises:
            Exception: the engine has a bug.
        """

    def fail(self, error: Exception) -> None:
        """Fail all requests that wait."""

    def close(self) -> None:
        """Cancel all requests that wait."""


@dataclass(eq=False)
class Request:
    """A request's images that are still waiting, and its shares of the batches that have started."""

    record: Record
    waiting: Images
    placed: asyncio.Future[None]
    shares: list[Share] = field(default_factory=list)

    def place(self, run: BatchRun, start: int, count: int) -> None:
        """Move the first `count` images into a batch, from its row `start` on."""
        self.waiting = self.waiting[count:]
        self.shares.append(Share(run, slice(start, start + count)))
        run.waiting += 1
        if len(self.waiting) == 0 and not self.placed.done():
            self.placed.set_result(None)

    def fail(self, error: Exception) -> None:
        """Stop waiting, unless all images have been placed."""
        if not self.placed.done():
            self.placed.set_exception(error)


class WholeLine:
    """Requests whose batches go to all members at once."""

    def __init__(self, engine: BatchEngine, ensemble: Ensemble, on_batch: OnBatch) -> None:
        self.ensemble = ensemble
        self.requests: deque[Request] = deque()
        self._engine = engine
        self._on_batch = on_batch

    @property
    def waits(self) -> bool:
        """Whether a request waits."""
        return bool(self.requests)

    def start(self, places: Sequence[Place], running: Sequence[BatchRun]) -> list[BatchRun]:
        """Start a batch in each copy with an idle lane, or one if it is as large as the oldest that runs."""
        unfinished: Counter[Place] = Counter()
        for run in running:
            unfinished[run.place] += run.unfinished
        ranked = sorted(places, key=unfinished.__getitem__)
        lanes = self._engine.lanes(self.ensemble)
        chosen = [place for place in ranked if unfinished[place] < lanes]
        if not chosen and sum(len(request.waiting) for request in self.requests) >= running[0].size:
            chosen = ranked[:1]
        # One batch at most waits behind those that run.
        room = max(0, len(places) + 1 - len(running))
        return [self._start_at(place) for place in chosen[:room] if self.requests]

    def fail(self, error: Exception) -> None:
        """Fail all requests that wait."""
        for request in self.requests:
            request.fail(error)

    def close(self) -> None:
        """Cancel all requests that wait."""
        for request in self.requests:
            request.placed.cancel()

    def _start_at(self, place: Place) -> BatchRun:
        run = run_whole(self._engine, self.ensemble, self.requests, self._on_batch, place)
        while self.requests and len(self.requests[0].waiting) == 0:
            self.requests.popleft()
        return run


def run_whole(
    engine: BatchEngine,
    ensemble: Ensemble,
    requests: Iterable[Request],
    on_batch: OnBatch,
    place: Place = Place(),  # noqa: B008  # it does not change
) -> BatchRun:
    """Give the engine as many images as fit, in order; a request may be split."""
    room = ensemble.max_batch_size
    pieces: list[tuple[Request, int]] = []
    for request in requests:
        count = min(room, len(request.waiting))
        pieces.append((request, count))
        room -= count
        if room == 0:
            break
    images = gather([(request.waiting, slice(0, count)) for request, count in pieces])
    began = perf_counter_ns()
    records = [request.record for request, _ in pieces]
    members = engine.start(ensemble, images, records, place.copy)
    finished = asyncio.gather(*members, return_exceptions=True)
    names = [member.name for member in ensemble.members]
    run = BatchRun(len(images), began, names, members, finished, place=place)
    finished.add_done_callback(lambda _: on_batch(ensemble, run))
    start = 0
    for request, count in pieces:
        request.place(run, start, count)
        start += count
    return run
