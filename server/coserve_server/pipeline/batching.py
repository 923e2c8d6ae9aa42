"""Continuous batching: requests that arrive while a batch runs form the next one."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from functools import partial
from itertools import count

from coserve_server.engines.base import BatchEngine, Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError
from coserve_server.observability.record import Record, no_request
from coserve_server.outcomes import BatchRun, Place, Share
from coserve_server.pipeline.early_stopping.line import StagedLine
from coserve_server.pipeline.early_stopping.rule import StoppingRule
from coserve_server.pipeline.lines import Line, OnBatch, Request, WholeLine, run_whole


class Batcher:
    """Gives an engine batches of as many waiting images as fit, on cores that no other ensemble is using.

    An idle engine gets what is waiting immediately: waiting for more gains nothing. An ensemble's next batch
    starts when the first of its lanes is idle, so that no core waits for the slowest member, or when it is as
    large as the batch that runs: then both alternate, and no core waits for the event loop. A backend that
    batches on its own gets every request immediately.

    Ensembles take turns: each starts a batch in those of its copies whose cores are free. Until one can,
    those behind it start nothing on the cores of its copies, so an ensemble that needs many cores gets them.

    Images that may stop early wait in lines of their own: see `StagedLine`.
    """

    def __init__(self, engine: BatchEngine, on_batch: OnBatch = lambda _ensemble, _run: None) -> None:
        """Batch for an engine.

        Args:
            on_batch: called for every batch when its members have answered or been cancelled.
        """
        self._engine = engine
        self._on_batch = on_batch
        self._lines: dict[Hashable, Line] = {}
        """By key, in the order of their turns; something waits in each."""
        self._running: dict[Hashable, list[BatchRun]] = {}
        """By the key of their line, the oldest first."""
        self._scheduled = False
        """Whether `_advance` is about to be called."""
        self._staged: dict[Hashable, StagedLine] = {}
        self._first = count()
        """Lines last only while they have images, so each begins with the next member."""
        self._sent: Counter[Hashable] = Counter()
        """Unfinished batches at a backend that batches on its own, by key of their ensembles."""

    async def start(
        self, record: Record, ensemble: Ensemble, images: Images, deadline_ns: int
    ) -> list[Share]:
        """Wait until the engine has all images, in one batch or several.

        The caller must `release` the batch of every share when it no longer wants the answer.

        Args:
            images: FP32 `[N, 3, H, W]`, N at least 1.
            deadline_ns: when to stop waiting, on the clock of `time.perf_counter_ns`.

        Returns:
            the request's shares of the batches, in the order of its images.

        Raises:
            DeadlineError: the request's turn did not come in time.
        """
        loop = asyncio.get_running_loop()
        late = DeadlineError(f"{ensemble.name} did not get its turn before the deadline")
        left_s = (deadline_ns - time.perf_counter_ns()) / 1e9
        if left_s <= 0:
            raise late
        request = Request(record, images, loop.create_future())
        if self._engine.batches(ensemble):
            while len(request.waiting):
                self._send(ensemble, request)
            return request.shares
        self._join(ensemble).requests.append(request)
        self._schedule()
        timer = loop.call_later(left_s, request.fail, late)
        try:
            await request.placed
        except BaseException:
            self._withdraw(ensemble, request)
            raise
        finally:
            timer.cancel()
        return request.shares

    def stage(self, ensemble: Ensemble, rule: StoppingRule) -> StagedLine:
        """Return the line of images that may stop early."""
        key = (*_key(ensemble), "staged")
        if key not in self._staged:
            changed = partial(self._update, key)
            first = next(self._first) % len(ensemble.members)
            self._staged[key] = StagedLine(self._engine, ensemble, rule, first, self._on_batch, changed)
        return self._staged[key]

    def busy(self, ensemble: Ensemble) -> bool:
        """Return whether a request for the ensemble would have to wait for batches that run.

        Where the backend batches on its own: whether it has another request for the ensemble.
        """
        taken = {core for runs in self._running.values() for run in runs for core in run.place.cores}
        free = any(place.cores.isdisjoint(taken) for place in self._engine.places(ensemble))
        return not free or self._sent[_key(ensemble)] > 0

    def close(self) -> None:
        """Cancel the waiting requests."""
        for line in (*self._lines.values(), *self._staged.values()):
            line.close()

    def _send(self, ensemble: Ensemble, request: Request) -> None:
        """Give a batch to a backend that batches on its own."""
        key = _key(ensemble)
        run = run_whole(self._engine, ensemble, [request], self._on_batch)
        self._sent[key] += 1
        run.finished.add_done_callback(lambda _: self._forget_sent(key))

    def _forget_sent(self, key: Hashable) -> None:
        self._sent[key] -= 1
        if self._sent[key] == 0:
            del self._sent[key]

    def _join(self, ensemble: Ensemble) -> WholeLine:
        """Return the line of whole batches."""
        key = _key(ensemble)
        line = self._lines.get(key)
        if not isinstance(line, WholeLine):
            line = self._lines[key] = WholeLine(self._engine, ensemble, self._on_batch)
        return line

    def _schedule(self) -> None:
        """Advance soon; not immediately, so that requests of one moment form a batch."""
        if self._lines and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._advance, context=no_request())

    def _update(self, key: Hashable) -> None:
        """Take note that a line of staged images has changed."""
        line = self._staged.get(key)
        if line is None:
            return
        if line.waits:
            self._lines.setdefault(key, line)
        else:
            self._lines.pop(key, None)
        if line.empty:
            del self._staged[key]
        self._schedule()

    def _withdraw(self, ensemble: Ensemble, request: Request) -> None:
        """Remove a request that no longer wants an answer."""
        line = self._lines.get(_key(ensemble))
        if isinstance(line, WholeLine) and request in line.requests:
            line.requests.remove(request)
            if not line.waits:
                del self._lines[_key(ensemble)]
                self._schedule()
        for share in request.shares:
            share.batch.release()

    def _advance(self) -> None:
        """Start the batches that may run."""
        self._scheduled = False
        unfinished = {key: [run for run in runs if run.unfinished] for key, runs in self._running.items()}
        self._running = {key: runs for key, runs in unfinished.items() if runs}
        reserved: set[Hashable] = set()
        turns = deque(self._lines)
        while turns:
            key = turns.popleft()
            line = self._lines[key]
            try:
                places = self._engine.places(line.ensemble)
                runs = self._start(key, line, places, reserved)
            except Exception as error:
                line.fail(error)
                continue
            if not runs:
                reserved.update(*(place.cores for place in places))
                continue
            del self._lines[key]
            if line.waits:
                self._lines[key] = line
                turns.append(key)

    def _start(
        self, key: Hashable, line: Line, places: Sequence[Place], reserved: set[Hashable]
    ) -> list[BatchRun]:
        """Start the batches of a line's turn in places that are neither reserved nor used by another line."""
        others = (runs for other, runs in self._running.items() if other != key)
        taken = reserved.union(*(run.place.cores for runs in others for run in runs))
        free = [place for place in places if place.cores.isdisjoint(taken)]
        if not free:
            return []
        own = self._running.get(key, [])
        runs = line.start(free, [run for run in own if run.place in free])
        if runs:
            self._running[key] = own + runs
        for run in runs:
            for member in run.members:
                member.add_done_callback(lambda _: self._advance(), context=no_request())
        return runs


def _key(ensemble: Ensemble) -> tuple[int, str]:
    """Return a key by identity: an ensemble that was reloaded under its name is another one."""
    return id(ensemble.whole), ensemble.name
