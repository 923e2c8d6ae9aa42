"""Continuous batching: requests that arrive while a batch runs form the next one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coserve_server.engines.base import Batch, Engine, MemberRun
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError


@dataclass(eq=False)
class BatchRun:
    """A batch that the engine was given.

    Attributes:
        size: its images.
        began_ns: when the engine was given it, on the clock of `time.perf_counter_ns`.
        members: one future per member, in the ensemble's order.
        finished: done when all of them are.
        waiting: requests that still want its answer.
    """

    size: int
    began_ns: int
    members: Sequence[asyncio.Future[MemberRun]]
    finished: asyncio.Future[Any]
    waiting: int = 0

    @property
    def unfinished(self) -> int:
        """Members that have neither answered nor been left."""
        return sum(not member.done() for member in self.members)

    def outcomes(self) -> list[MemberRun | None]:
        """What the members did, once they are finished; None of one that was left or has a bug."""
        return [None if one.cancelled() or one.exception() else one.result() for one in self.members]

    def leave(self) -> None:
        """Want the answer no more; with the last request gone, what still runs is told to stop."""
        self.waiting -= 1
        if self.waiting == 0:
            for member in self.members:
                member.cancel()


@dataclass(frozen=True)
class Share:
    """The rows of a batch that belong to one request."""

    run: BatchRun
    rows: slice


@dataclass(eq=False)
class _Request:
    """What of a request is not with the engine yet, and where the rest is."""

    left: Batch
    placed: asyncio.Future[None]
    shares: list[Share] = field(default_factory=list)

    def place(self, run: BatchRun, start: int, count: int) -> None:
        """Move the first images into a batch, from its row `start` on."""
        self.left = self.left[count:]
        self.shares.append(Share(run, slice(start, start + count)))
        run.waiting += 1
        if len(self.left) == 0 and not self.placed.done():
            self.placed.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the waiting, unless it has ended."""
        if not self.placed.done():
            self.placed.set_exception(error)


_Queue = deque[_Request]
Ran = Callable[[Ensemble, BatchRun], None]


@dataclass(eq=False)
class _Resource:
    """What batches have to themselves: those that run, and the ensembles whose requests wait for it.

    Attributes:
        running: at most two batches, the older one first.
        user: of the ensemble that they are of.
        queues: by identity and name of their ensembles, in the order of their turns; none is empty.
    """

    running: list[BatchRun] = field(default_factory=list)
    user: tuple[int, str] | None = None
    queues: dict[tuple[int, str], tuple[Ensemble, _Queue]] = field(default_factory=dict)


class Batcher:
    """Hands an engine one batch per resource at a time, of as many images as are there and fit.

    An idle engine is given what there is at once: nothing is gained by waiting for more. An ensemble's next
    batch begins when the first of its lanes is idle, so that no core waits for the slowest member. An engine
    that batches itself is given everything at once.
    """

    def __init__(self, engine: Engine, ran: Ran = lambda _ensemble, _run: None) -> None:
        """Batch for an engine; `ran` is told of every batch when its members have answered or been left."""
        self._engine, self._ran = engine, ran
        self._resources: dict[Hashable, _Resource] = {}

    async def start(self, ensemble: Ensemble, batch: Batch, expires: float) -> list[Share]:
        """Wait until the engine has all images, in one batch or several.

        The caller has to `leave` the run of every share once it wants nothing more of it.

        Args:
            batch: FP32 `[N, 3, H, W]`, N at least 1.
            expires: when to stop waiting, on the clock of `loop.time()`.

        Returns:
            where the images are, in their order.

        Raises:
            DeadlineError: the turn did not come in time.
        """
        loop = asyncio.get_running_loop()
        late = DeadlineError(f"{ensemble.name} did not get its turn before the deadline")
        if expires <= loop.time():
            raise late
        request = _Request(batch, loop.create_future())
        if self._engine.batches(ensemble):
            while len(request.left):
                self._run(ensemble, [request])
            return request.shares
        self._enqueue(ensemble, request)
        timer = loop.call_at(expires, request.fail, late)
        try:
            await request.placed
        except BaseException:
            self._forget(ensemble, request)
            raise
        finally:
            timer.cancel()
        return request.shares

    def close(self) -> None:
        """Cancel the requests that wait."""
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
            # Not at once: requests that came together form a batch.
            asyncio.get_running_loop().call_soon(self._advance, name)

    def _forget(self, ensemble: Ensemble, request: _Request) -> None:
        """A request wants no answer any more."""
        resource = self._resources.get(self._engine.resource(ensemble), _Resource())
        _, queue = resource.queues.get(_key(ensemble), (ensemble, _Queue()))
        if request in queue:
            queue.remove(request)
            if not queue:
                del resource.queues[_key(ensemble)]
        for share in request.shares:
            share.run.leave()

    def _advance(self, name: Hashable) -> None:
        """Run what may run on a resource, or forget the resource where nothing waits for it."""
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
            while queue and len(queue[0].left) == 0:
                queue.popleft()
            if queue:
                resource.queues[key] = (ensemble, queue)
            for member in run.members:
                member.add_done_callback(lambda _: self._advance(name))
        if not resource.running:
            del self._resources[name]

    def _may_start(self, resource: _Resource) -> bool:
        """Whether the next batch of those that wait may be given to the engine."""
        if not resource.running:
            return True
        key, (ensemble, _) = next(iter(resource.queues.items()))
        if len(resource.running) > 1 or resource.user != key:
            return False
        return resource.running[0].unfinished < self._engine.lanes(ensemble)

    def _run(self, ensemble: Ensemble, queue: Iterable[_Request]) -> BatchRun:
        """Give the engine as many images as fit, the first ones first; a request may be split."""
        room, pieces = ensemble.max_batch_size, list[tuple[_Request, int]]()
        for request in queue:
            count = min(room, len(request.left))
            pieces.append((request, count))
            room -= count
            if room == 0:
                break
        batch = self._together([request.left[:count] for request, count in pieces])
        began = time.perf_counter_ns()
        members = self._engine.start(ensemble, batch)
        finished = asyncio.gather(*members, return_exceptions=True)
        run = BatchRun(len(batch), began, members, finished)
        finished.add_done_callback(lambda _: self._ran(ensemble, run))
        start = 0
        for request, count in pieces:
            request.place(run, start, count)
            start += count
        return run

    def _together(self, batches: Sequence[Batch]) -> Batch:
        if len(batches) == 1:
            return batches[0]
        shape = (sum(map(len, batches)), *batches[0].shape[1:])
        return np.concatenate(batches, out=self._engine.allocate(shape))


def _key(ensemble: Ensemble) -> tuple[int, str]:
    """By identity: an ensemble that was loaded again under its name is another one."""
    return id(ensemble.whole), ensemble.name
