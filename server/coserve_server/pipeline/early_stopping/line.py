"""Staging: members take images one after another, until an image's answer is confident enough."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import ceil
from time import perf_counter_ns

import numpy as np

from coserve_server.engines.base import BatchEngine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import no_request
from coserve_server.outcomes import BatchRun, Place, Share
from coserve_server.pipeline.combine import Floats
from coserve_server.pipeline.early_stopping.rows import Row, StagedRequest, by_request, gather_rows
from coserve_server.pipeline.early_stopping.rule import StoppingRule, confidences
from coserve_server.pipeline.lines import OnBatch

DEPTH = 2
"""Batches per lane: while one runs, the next one waits behind it, and no core waits for the event loop."""
INLINE_VALUES = 2**15
"""The confidence of more logits is computed on a thread."""


class StagedLine:
    """The images of one ensemble that may stop early.

    A lane that is idle takes images that still lack an answer of one of its members: first those which have
    been given to most members, so that requests end. Its members take turns, and no lane takes more than its
    share of all images, so that every lane has work. An image is at one member at a time, so no member runs
    for an image that is sure, unless a member is late.
    """

    def __init__(
        self,
        engine: BatchEngine,
        ensemble: Ensemble,
        rule: StoppingRule,
        first: int,
        on_batch: OnBatch,
        changed: Callable[[], None],
    ) -> None:
        """Stage the images of an ensemble.

        Args:
            first: index of the member that begins.
            changed: called when images have begun or ceased to wait.
        """
        self.ensemble = ensemble
        self._engine = engine
        self._rule = rule
        self._on_batch = on_batch
        self._changed = changed
        size = len(ensemble.members)
        self._members = [ensemble.alone(member) for member in ensemble.members]
        weights = np.array([member.weight for member in ensemble.members])
        self._weights = (weights / weights.max()).tolist()
        self._temperatures = [ensemble.calibration.temperature(count) for count in range(size + 1)]
        # A backend that batches on its own has no lanes: it gets everything immediately.
        self._unlimited = engine.batches(ensemble)
        lanes = size if self._unlimited else engine.lanes(ensemble)
        self._lanes: list[list[BatchRun]] = [[] for _ in range(lanes)]
        """Unfinished batches of each lane, in all copies of it."""
        self._started = [(member - first) % size - size for member in range(size)]
        """When each member was started last, counted in batches."""
        self._batches = 0
        self._waiting: list[Row] = []
        self._unfinished: dict[StagedRequest, None] = {}
        self._images = 0
        """Number of images that are not finished."""

    @property
    def waits(self) -> bool:
        """Whether an image waits."""
        return bool(self._waiting)

    @property
    def empty(self) -> bool:
        """Whether no request is unfinished."""
        return not self._unfinished

    def add(self, request: StagedRequest) -> None:
        """Take a new request."""
        self._unfinished[request] = None
        self._images += len(request.rows)
        self._queue(request.rows)

    def withdraw(self, request: StagedRequest) -> None:
        """Remove a request that has ended, or no longer wants an answer."""
        for row in request.rows:
            if not row.finished:
                self._finish(row)
        self._queue(())

    def overtake(self, request: StagedRequest) -> None:
        """Offer a request's images to further members while one still has them: it is late."""
        self._queue([row for row in request.rows if row.runs])

    def start(self, places: Sequence[Place], running: Sequence[BatchRun]) -> list[BatchRun]:
        """Give every lane that can take images a batch."""
        runs = []
        while (chosen := self._next(places)) is not None:
            runs.append(self._run(*chosen))
        return runs

    def fail(self, error: Exception) -> None:
        """Fail all requests."""
        for request in list(self._unfinished):
            request.fail(error)
            self.withdraw(request)

    def close(self) -> None:
        """Cancel all requests."""
        for request in self._unfinished:
            request.done.cancel()

    def _queue(self, rows: Sequence[Row]) -> None:
        """Let images wait, if there is a member left for them."""
        for row in rows:
            if not row.finished and len(row.asked) < len(self._members):
                if not row.waits:
                    self._waiting.append(row)
                row.waits = True
        self._waiting = [row for row in self._waiting if row.waits]
        # The sort is stable: among equals, the first to come is the first to be served.
        self._waiting.sort(key=lambda row: -len(row.asked))
        self._changed()

    def _next(self, places: Sequence[Place]) -> tuple[int, list[Row], Place] | None:
        """Return the next member to run, its images and where; None if no lane can take any."""
        if not self._waiting:
            return None
        shares = DEPTH * len(self._lanes) * len(places)
        room = min(ceil(self._images / shares), self.ensemble.max_batch_size)
        self._lanes = [[run for run in lane if run.unfinished] for lane in self._lanes]
        for lane in sorted(range(len(self._lanes)), key=self._rank):
            member, rows = self._choose(lane, room)
            place = self._place(lane, places, len(rows), room) if rows else None
            if place is not None:
                return member, rows, place
        return None

    def _rank(self, lane: int) -> tuple[int, int]:
        """Return a key that puts the lane with the fewest images first, and then the one idle for longest."""
        return sum(run.size for run in self._lanes[lane]), max(self._started[lane :: len(self._lanes)])

    def _choose(self, lane: int, room: int) -> tuple[int, list[Row]]:
        """Return the member of a lane whose turn it is, and the images that it can take."""
        own = range(lane, len(self._members), len(self._lanes))
        for member in sorted(own, key=lambda member: self._started[member]):
            rows = list(islice((row for row in self._waiting if member not in row.asked), room))
            if rows:
                return member, rows
        return lane, []

    def _place(self, lane: int, places: Sequence[Place], images: int, room: int) -> Place | None:
        """Return an idle copy of the lane, or any if the next batch is as large as the lane's oldest one."""
        running = self._lanes[lane]
        batches = Counter(run.place for run in running)
        place = min(places, key=batches.__getitem__)
        if batches[place] == 0 or self._unlimited:
            return place
        more = len(running) < len(places) + DEPTH - 1 and images >= min(running[0].size, room)
        return place if more else None

    def _run(self, member: int, rows: list[Row], place: Place) -> BatchRun:
        images = gather_rows(rows)
        began = perf_counter_ns()
        records = [request.record for request, _ in by_request(rows)]
        (future,) = self._engine.start(self._members[member], images, records, place.copy)
        name = self.ensemble.members[member].name
        run = BatchRun(len(rows), began, [name], [future], future, len(rows), place)
        for row in rows:
            row.waits = False
            row.asked.add(member)
            row.runs[member] = run
        self._waiting = [row for row in self._waiting if row.waits]
        self._batches += 1
        self._started[member] = self._batches
        self._lanes[member % len(self._lanes)].append(run)
        future.add_done_callback(lambda _: self._end(member, run, rows), context=no_request())
        return run

    def _end(self, member: int, run: BatchRun, rows: Sequence[Row]) -> None:
        """Take a member's answers, and send the images on that are not sure."""
        unfinished = [row for row in rows if not row.finished]
        for row in unfinished:
            del row.runs[member]
        with _failing(unfinished):
            self._on_batch(self.ensemble, run)
            (future,) = run.members
            if not future.cancelled():
                if error := future.exception():
                    raise RuntimeError(f"member {run.names[0]}: {error}") from error
                self._take(member, run, rows)
            self._judge(unfinished)

    def _take(self, member: int, run: BatchRun, rows: Sequence[Row]) -> None:
        for request, positions in by_request(rows):
            if request not in self._unfinished:
                continue
            answer = request.take(member, Share(run, positions), len(self.ensemble.labels))
            for place, position in enumerate(positions):
                if answer.logits is not None and not rows[position].finished:
                    rows[position].add(member, answer.logits[place], self._weights[member])

    def _judge(self, rows: Sequence[Row]) -> None:
        """Find out which images are sure."""
        judged = [row for row in rows if self._rule.minimum <= len(row.logits) < len(self._members)]
        divisors = [
            sum(self._weights[member] for member in row.logits) * self._temperatures[len(row.logits)]
            for row in judged
        ]
        classes = len(self.ensemble.labels)
        totals = np.array([row.total for row in judged]).reshape(len(judged), classes)
        if totals.size <= INLINE_VALUES:
            self._send_on(rows, judged, confidences(totals, np.array(divisors)))
            return
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(None, confidences, totals, np.array(divisors))

        def send_on(job: asyncio.Future[Floats]) -> None:
            with _failing(rows):
                self._send_on(rows, judged, job.result())

        job.add_done_callback(send_on)

    def _send_on(self, rows: Sequence[Row], judged: Sequence[Row], found: Floats) -> None:
        """Finish the images that are sure or have been at all members; let the others wait."""
        for row, confidence in zip(judged, found.tolist(), strict=True):
            if not row.finished and confidence > self._rule.confidence:
                row.sure = True
                self._finish(row)
        for row in rows:
            if not row.finished and self._exhausted(row):
                self._finish(row)
        self._queue(rows)

    def _finish(self, row: Row) -> None:
        row.request.finish(row)
        self._images -= 1
        if row.request.done.done():
            self._unfinished.pop(row.request, None)

    def _exhausted(self, row: Row) -> bool:
        """Return whether an image has been at all members."""
        return len(row.asked) == len(self._members) and not row.runs


@contextmanager
def _failing(rows: Sequence[Row]) -> Iterator[None]:
    """Let an error end the images' requests: a callback's would reach nobody, and they would wait in vain."""
    try:
        yield
    except Exception as error:
        for row in rows:
            if not row.finished:
                row.request.fail(error)
