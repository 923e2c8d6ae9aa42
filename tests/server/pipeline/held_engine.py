"""An engine that answers when a test lets it, and requests to a batcher over it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record, logged_id
from coserve_server.outcomes import MemberRun, Share
from coserve_server.pipeline.batching import Batcher
from tests.server.fake_engine import FakeEngine, ensemble, run

PAIR = ensemble(max_batch_size=4)
OTHER = ensemble(name="other", max_batch_size=4)
NEVER = 2**62
FOUR = ensemble(members=4, name="four", max_batch_size=4)


class HeldEngine(FakeEngine):
    """Holds every batch until it is told to answer; batches of all ensembles share one resource."""

    def __init__(self, batching: bool = False) -> None:
        super().__init__(PAIR, OTHER, FOUR)
        self.batching = batching
        self.batches_given: list[tuple[str, list[float]]] = []
        self.contexts: list[str] = []

    def batches(self, ensemble: Ensemble) -> bool:
        return self.batching

    def start(
        self, ensemble: Ensemble, images: Images, records: Sequence[Record] = ()
    ) -> "list[asyncio.Future[MemberRun]]":
        self.batches_given.append((ensemble.name, images[:, 0, 0, 0].tolist()))
        self.records.append(list(records))
        self.contexts.append(logged_id.get())
        futures = [asyncio.get_running_loop().create_future() for _ in ensemble.members]
        self.futures.extend(futures)
        return futures

    def answer(self, first: int | None = None) -> None:
        """Make waiting members answer: all, or only the `first` ones."""
        for future in self.futures[:first]:
            if not future.done():
                future.set_result(run(0, 1, [1, 2]))


def images(*values: float) -> Images:
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)


Use = Callable[[Batcher, HeldEngine], Awaitable[None]]


def with_batcher(use: Use, batching: bool = False) -> "list[tuple[str, list[float]]]":
    """Return the batches that the engine was given; check that the batcher is empty at the end."""

    async def go() -> HeldEngine:
        engine = HeldEngine(batching)
        batcher = Batcher(engine)
        await asyncio.wait_for(use(batcher, engine), 30)
        engine.answer()
        await settle()
        assert not batcher._resources
        batcher.close()
        return engine

    return asyncio.run(go()).batches_given


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def ask(batcher: Batcher, *values: float, model: Ensemble = PAIR) -> "asyncio.Task[list[Share]]":
    return asyncio.create_task(batcher.start(Record(), model, images(*values), NEVER))
