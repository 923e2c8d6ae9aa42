"""An engine that answers when a test lets it, and requests to a batcher over it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from coserve_server.engines.base import Batch, Images, as_array
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record, logged_id
from coserve_server.outcomes import MemberRun, Place, Share
from coserve_server.pipeline.batching import Batcher
from tests.server.fake_engine import FakeEngine, ensemble, run

PAIR = ensemble(max_batch_size=4)
OTHER = ensemble(name="other", max_batch_size=4)
NEVER = 2**62
FOUR = ensemble(members=4, name="four", max_batch_size=4)


class HeldEngine(FakeEngine):
    """Holds every batch until it is told to answer.

    Attributes:
        cores: the cores of each copy, by the ensemble's name; without them, one copy on the core 0.
    """

    def __init__(self, batching: bool = False, **cores: list[set[int]]) -> None:
        super().__init__(PAIR, OTHER, FOUR)
        self.batching = batching
        self.cores = cores
        self.copies: list[int] = []
        self.runs: list[list[asyncio.Future[MemberRun]]] = []
        self.batches_given: list[tuple[str, list[float]]] = []
        self.contexts: list[str] = []

    def batches(self, ensemble: Ensemble) -> bool:
        return self.batching

    def places(self, ensemble: Ensemble) -> Sequence[Place]:
        copies = self.cores.get(ensemble.name, [{0}])
        return [Place(index, frozenset(cores)) for index, cores in enumerate(copies)]

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> "list[asyncio.Future[MemberRun]]":
        self.copies.append(copy)
        self.batches_given.append((ensemble.name, as_array(images)[:, 0, 0, 0].tolist()))
        self.records.append(list(records))
        self.contexts.append(logged_id.get())
        futures = [asyncio.get_running_loop().create_future() for _ in ensemble.members]
        self.futures.extend(futures)
        self.runs.append(futures)
        return futures

    def answer(self, first: int | None = None) -> None:
        """Make waiting members answer: all, or only the `first` ones."""
        for future in self.futures[:first]:
            if not future.done():
                future.set_result(run(0, 1, [1, 2]))

    async def end(self, batch: int) -> None:
        """Make all members answer one batch."""
        for future in self.runs[batch]:
            future.set_result(run(0, 1, [1, 2]))
        await settle()

    @property
    def started(self) -> list[tuple[str, int]]:
        """Each batch's ensemble and copy."""
        return [(name, copy) for (name, _), copy in zip(self.batches_given, self.copies, strict=True)]


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
        check_empty(batcher)
        batcher.close()
        return engine

    return asyncio.run(go()).batches_given


def check_empty(batcher: Batcher) -> None:
    assert not batcher._lines
    assert not batcher._running


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def ask(batcher: Batcher, *values: float, model: Ensemble = PAIR) -> "asyncio.Task[list[Share]]":
    return asyncio.create_task(batcher.start(Record(), model, images(*values), NEVER))
