"""Continuous batching: requests that arrive while a batch runs form the next one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coserve_server.engines.base import Batch, Engine, MemberRun
from coserve_server.ensembles import Ensemble
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
        if len(self.left) == 0:
            self.placed.set_result(None)


_Queue = deque[_Request]
Ran = Callable[[Ensemble, BatchRun], None]


class Batcher:
    """Hands an engine one batch per ensemble at a time, of as many images as are there and fit.

    An idle engine is given what there is at once: nothing is gained by waiting for more. One that batches
    itself is given everything at once.
    """

    def __init__(self, engine: Engine, ran: Ran = lambda _ensemble, _run: None) -> None:
        """Batch for an engine; `ran` is told of every batch when its members have answered or been left."""
        self._engine, self._ran = engine, ran
        self._queues: dict[tuple[int, str], _Queue] = {}
        self._serving: set[asyncio.Task[None]] = set()

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
        if expires <= loop.time():
            raise DeadlineError(f"{ensemble.name} did not get its turn before the deadline")
        request = _Request(batch, loop.create_future())
        if self._engine.batches(ensemble):
            while len(request.left):
                self._run(ensemble, [request])
            return request.shares
        queue = self._queue(ensemble)
        queue.append(request)
        try:
            await asyncio.wait((request.placed,), timeout=expires - loop.time())
            if not request.placed.done():
                raise DeadlineError(f"{ensemble.name} did not get its turn before the deadline")
            request.placed.result()
        except BaseException:
            if request in queue:
                queue.remove(request)
            for share in request.shares:
                share.run.leave()
            raise
        return request.shares

    async def close(self) -> None:
        """Stop; requests that still wait are cancelled."""
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _queue(self, ensemble: Ensemble) -> _Queue:
        """The ensemble's queue, which is there, and served, while a request is in it."""
        # By identity: an ensemble that was loaded again under its name is another one.
        key = (id(ensemble.whole), ensemble.name)
        if key not in self._queues:
            self._queues[key] = deque()
            serving = asyncio.create_task(self._serve(ensemble, key))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
        return self._queues[key]

    async def _serve(self, ensemble: Ensemble, key: tuple[int, str]) -> None:
        queue = self._queues[key]
        try:
            # The request that made the queue is put into it before this runs.
            while queue:
                async with self._engine.turn(ensemble):
                    if queue:
                        run = self._run(ensemble, queue)
                        while queue and len(queue[0].left) == 0:
                            queue.popleft()
                        await run.finished
        except Exception as error:
            for request in queue:
                request.placed.set_exception(error)
        finally:
            del self._queues[key]
            for request in queue:
                request.placed.cancel()

    def _run(self, ensemble: Ensemble, queue: Iterable[_Request]) -> BatchRun:
        """Give the engine as many images as fit, the first ones first; a request may be split."""
        room, pieces = ensemble.max_batch_size, list[tuple[_Request, int]]()
        for request in queue:
            count = min(room, len(request.left))
            pieces.append((request, count))
            room -= count
            if room == 0:
                break
        batches = [request.left[:count] for request, count in pieces]
        batch = batches[0] if len(batches) == 1 else np.concatenate(batches)
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
