"""Continuous batching: requests that arrive while a batch runs form the next one."""

import asyncio
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from coserve_server.engines.base import BatchEngine, Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError
from coserve_server.observability.record import Record, no_request
from coserve_server.outcomes import BatchRun, Share
from coserve_server.pipeline.early_stopping.line import StagedLine
from coserve_server.pipeline.early_stopping.rule import StoppingRule
from coserve_server.pipeline.lines import Line, OnBatch, Request, WholeLine, run_whole


@dataclass(eq=False)
class _Resource:
    """A resource that batches occupy exclusively, and the lines that wait for it.

    Attributes:
        running: the batches that run, all of one line, the oldest first.
        user: key of that line.
        lines: by key, in the order of their turns; something waits in each.
        scheduled: whether `Batcher._advance` is about to be called.
    """

    running: list[BatchRun] = field(default_factory=list)
    user: Hashable = None
    lines: dict[Hashable, Line] = field(default_factory=dict)
    scheduled: bool = False


class Batcher:
    """Gives an engine one batch per resource at a time, of as many waiting images as fit.

    An idle engine gets what is waiting immediately: waiting for more gains nothing. An ensemble's next batch
    starts when the first of its lanes is idle, so that no core waits for the slowest member, or when it is as
    large as the batch that runs: then both alternate, and no core waits for the event loop. A backend that
    batches on its own gets every request immediately.

    Images that may stop early wait in lines of their own: see `StagedLine`.
    """

    def __init__(self, engine: BatchEngine, on_batch: OnBatch = lambda _ensemble, _run: None) -> None:
        """Batch for an engine.

        Args:
            on_batch: called for every batch when its members have answered or been cancelled.
        """
        self._engine = engine
        self._on_batch = on_batch
        self._resources: dict[Hashable, _Resource] = {}
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
        name = self._engine.resource(ensemble)
        line = self._join(name, ensemble)
        line.requests.append(request)
        self._schedule(name)
        timer = loop.call_later(left_s, request.fail, late)
        try:
            await request.placed
        except BaseException:
            self._withdraw(name, ensemble, request)
            raise
        finally:
            timer.cancel()
        return request.shares

    def stage(self, ensemble: Ensemble, rule: StoppingRule) -> StagedLine:
        """Return the line of images that may stop early."""
        key = (*_key(ensemble), "staged")
        if key not in self._staged:
            changed = partial(self._update, key, self._name(ensemble))
            first = next(self._first) % len(ensemble.members)
            self._staged[key] = StagedLine(self._engine, ensemble, rule, first, self._on_batch, changed)
        return self._staged[key]

    def busy(self, ensemble: Ensemble) -> bool:
        """Return whether a request for the ensemble would have to wait.

        Where the backend batches on its own: whether it has another request for the ensemble.
        """
        resource = self._resources.get(self._name(ensemble))
        if resource is not None and any(run.unfinished for run in resource.running):
            return True
        return self._sent[_key(ensemble)] > 0 if self._sent else False

    def close(self) -> None:
        """Cancel the waiting requests."""
        for resource in self._resources.values():
            for line in resource.lines.values():
                line.close()
        for staged in self._staged.values():
            staged.close()

    def _name(self, ensemble: Ensemble) -> Hashable:
        """Return the key of the resource; a backend that batches on its own has one for each ensemble."""
        if self._engine.batches(ensemble):
            return _key(ensemble)
        return self._engine.resource(ensemble)

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

    def _join(self, name: Hashable, ensemble: Ensemble) -> WholeLine:
        """Return the line of whole batches, which waits for the resource."""
        resource = self._resources.setdefault(name, _Resource())
        key = _key(ensemble)
        line = resource.lines.get(key)
        if not isinstance(line, WholeLine):
            line = resource.lines[key] = WholeLine(self._engine, ensemble, self._on_batch)
        return line

    def _schedule(self, name: Hashable) -> None:
        """Advance soon if a batch may start; not immediately, so that requests of one moment form a batch."""
        resource = self._resources[name]
        if not resource.scheduled and (not resource.running or self._may_start(resource)):
            resource.scheduled = True
            asyncio.get_running_loop().call_soon(self._advance, name, context=no_request())

    def _update(self, key: Hashable, name: Hashable) -> None:
        """Take note that a line of staged images has changed."""
        line = self._staged.get(key)
        if line is None:
            return
        if line.waits:
            self._resources.setdefault(name, _Resource()).lines.setdefault(key, line)
            self._schedule(name)
        elif (resource := self._resources.get(name)) is not None:
            resource.lines.pop(key, None)
        if line.empty:
            del self._staged[key]

    def _withdraw(self, name: Hashable, ensemble: Ensemble, request: Request) -> None:
        """Remove a request that no longer wants an answer."""
        resource = self._resources.get(name, _Resource())
        line = resource.lines.get(_key(ensemble))
        if isinstance(line, WholeLine) and request in line.requests:
            line.requests.remove(request)
            if not line.waits:
                del resource.lines[_key(ensemble)]
        for share in request.shares:
            share.batch.release()

    def _advance(self, name: Hashable) -> None:
        """Start the batches that may run on a resource; forget the resource if nothing uses it."""
        resource = self._resources.get(name)
        if resource is None:
            return
        resource.scheduled = False
        resource.running = [run for run in resource.running if run.unfinished]
        while resource.lines and self._may_start(resource):
            key = next(iter(resource.lines))
            line = resource.lines.pop(key)
            try:
                runs = line.start()
            except Exception as error:
                line.fail(error)
                continue
            resource.running += runs
            resource.user = key
            if line.waits:
                resource.lines[key] = line
            for run in runs:
                for member in run.members:
                    member.add_done_callback(lambda _: self._advance(name), context=no_request())
        if not resource.running:
            del self._resources[name]

    def _may_start(self, resource: _Resource) -> bool:
        """Return whether the engine may be given the next waiting batch."""
        if not resource.running:
            return True
        key, line = next(iter(resource.lines.items()))
        return resource.user == key and line.may_start(resource.running)


def _key(ensemble: Ensemble) -> tuple[int, str]:
    """Return a key by identity: an ensemble that was reloaded under its name is another one."""
    return id(ensemble.whole), ensemble.name
