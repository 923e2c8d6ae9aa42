"""Continuous batching: requests that arrive while a batch runs form the next one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

from coserve_server.engines.base import BatchEngine, Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError
from coserve_server.observability.record import Record, no_request
from coserve_server.outcomes import BatchRun, Share


@dataclass(eq=False)
class _Request:
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


_Queue = deque[_Request]
OnBatch = Callable[[Ensemble, BatchRun], None]


@dataclass(eq=False)
class _Resource:
    """A resource that batches occupy exclusively, and the ensembles whose requests wait for it.

    Attributes:
        running: at most two batches, the older one first.
        user: key of the ensemble now running.
        queues: by the key of their ensembles, in the order of their turns; none is empty.
    """

    running: list[BatchRun] = field(default_factory=list)
    user: tuple[int, str] | None = None
    queues: dict[tuple[int, str], tuple[Ensemble, _Queue]] = field(default_factory=dict)


class Batcher:
    """Gives an engine one batch per resource at a time, of as many waiting images as fit.

    An idle engine gets what is waiting immediately: waiting for more gains nothing. An ensemble's next batch
    starts when the first of its lanes is idle, so that no core waits for the slowest member, or when it is as
    large as the batch that runs: then both alternate, and no core waits for the event loop. A backend that
    batches on its own gets every request immediately.
    """

    def __init__(self, engine: BatchEngine, on_batch: OnBatch = lambda _ensemble, _run: None) -> None:
        """Batch for an engine.

        Args:
            on_batch: called for every batch when its members have answered or been cancelled.
        """
        self._engine = engine
        self._on_batch = on_batch
        self._resources: dict[Hashable, _Resource] = {}

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
        request = _Request(record, images, loop.create_future())
        if self._engine.batches(ensemble):
            while len(request.waiting):
                self._run(ensemble, [request])
            return request.shares
        self._enqueue(ensemble, request)
        timer = loop.call_later(left_s, request.fail, late)
        try:
            await request.placed
        except BaseException:
            self._withdraw(ensemble, request)
            raise
        finally:
            timer.cancel()
        return request.shares

    def close(self) -> None:
        """Cancel the waiting requests."""
        for resource in self._resources.values():
            for _, queue in resource.queues.values():
                for request in queue:
                    request.placed.cancel()

    def _enqueue(self, ensemble: Ensemble, request: _Request) -> None:
        name = self._engine.resource(ensemble)
        idle = name not in self._resources
        resource = self._resources.setdefault(name, _Resource())
        resource.queues.setdefault(_key(ensemble), (ensemble, deque()))[1].append(request)
        if idle or (resource.running and self._may_start(resource)):
            # Not immediately: requests that arrived together form a batch.
            asyncio.get_running_loop().call_soon(self._advance, name, context=no_request())

    def _withdraw(self, ensemble: Ensemble, request: _Request) -> None:
        """Remove a request that no longer wants an answer."""
        resource = self._resources.get(self._engine.resource(ensemble), _Resource())
        _, queue = resource.queues.get(_key(ensemble), (ensemble, _Queue()))
        if request in queue:
            queue.remove(request)
            if not queue:
                del resource.queues[_key(ensemble)]
        for share in request.shares:
            share.batch.release()

    def _advance(self, name: Hashable) -> None:
        """Start the batches that may run on a resource; forget the resource if nothing uses it."""
        resource = self._resources.get(name)
        if resource is None:
            return
        resource.running = [run for run in resource.running if run.unfinished]
        while resource.queues and self._may_start(resource):
            key = next(iter(resource.queues))
            ensemble, queue = resource.queues.pop(key)
            try:
                run = self._run(ensemble, queue)
            except Exception as error:
                for request in queue:
                    request.fail(error)
                continue
            resource.running.append(run)
            resource.user = key
            while queue and len(queue[0].waiting) == 0:
                queue.popleft()
            if queue:
                resource.queues[key] = (ensemble, queue)
            for member in run.members:
                member.add_done_callback(lambda _: self._advance(name), context=no_request())
        if not resource.running:
            del self._resources[name]

    def _may_start(self, resource: _Resource) -> bool:
        """Return whether the engine may be given the next waiting batch."""
        if not resource.running:
            return True
        key, (ensemble, queue) = next(iter(resource.queues.items()))
        if len(resource.running) > 1 or resource.user != key:
            return False
        running = resource.running[0]
        if running.unfinished < self._engine.lanes(ensemble):
            return True
        return sum(len(request.waiting) for request in queue) >= running.size

    def _run(self, ensemble: Ensemble, queue: Iterable[_Request]) -> BatchRun:
        """Give the engine as many images as fit, in order; a request may be split."""
        room = ensemble.max_batch_size
        pieces: list[tuple[_Request, int]] = []
        for request in queue:
            count = min(room, len(request.waiting))
            pieces.append((request, count))
            room -= count
            if room == 0:
                break
        parts = [request.waiting[:count] for request, count in pieces]
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        began = time.perf_counter_ns()
        members = self._engine.start(ensemble, images, [request.record for request, _ in pieces])
        finished = asyncio.gather(*members, return_exceptions=True)
        names = [member.name for member in ensemble.members]
        run = BatchRun(len(images), began, names, members, finished)
        finished.add_done_callback(lambda _: self._on_batch(ensemble, run))
        start = 0
        for request, count in pieces:
            request.place(run, start, count)
            start += count
        return run


def _key(ensemble: Ensemble) -> tuple[int, str]:
    """Return a key by identity: an ensemble that was reloaded under its name is another one."""
    return id(ensemble.whole), ensemble.name
