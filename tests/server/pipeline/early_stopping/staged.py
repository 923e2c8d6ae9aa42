"""Members that answer when a test says so, and requests whose images they answer one after another."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coserve_server.engines.base import Batch, Images, as_array
from coserve_server.ensembles.calibration import Calibration
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.outcomes import BatchRun, Failure, MemberRun, Place
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.early_stopping.rule import StoppingRule
from coserve_server.pipeline.in_turn import ask_in_turn
from tests.server.fake_engine import FakeEngine, ensemble
from tests.server.pipeline.held_engine import check_empty

LONG_S = 30


@dataclass(eq=False)
class Given:
    """A batch at members, which have not answered yet.

    Attributes:
        members: the members' indices in the whole ensemble.
        images: the first value of each image, which tells them apart.
    """

    members: list[int]
    images: list[float]
    futures: "list[asyncio.Future[MemberRun]]"

    @property
    def open(self) -> bool:
        return not all(future.done() for future in self.futures)


class StagedEngine(FakeEngine):
    """Its members wait for the test; `certainty` gives the logit of the first class, for image and member."""

    def __init__(self, model: Ensemble, lanes: int, certainty: Callable[[float, int], float]) -> None:
        super().__init__(model)
        self.whole = model
        self.lane_count = lanes
        self.copies = 1
        self.certainty = certainty
        self.batching = False
        self.log: list[Given] = []
        self.asked: dict[float, list[int]] = {}

    def lanes(self, ensemble: Ensemble) -> int:
        return min(self.lane_count, len(ensemble.members))

    def places(self, ensemble: Ensemble) -> Sequence[Place]:
        return [Place(copy, frozenset({copy})) for copy in range(self.copies)]

    def batches(self, ensemble: Ensemble) -> bool:
        return self.batching

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> "list[asyncio.Future[MemberRun]]":
        assert len(images) <= ensemble.max_batch_size
        loop = asyncio.get_running_loop()
        members = [self.whole.members.index(member) for member in ensemble.members]
        given = Given(members, as_array(images)[:, 0, 0, 0].tolist(), [loop.create_future() for _ in members])
        self.log.append(given)
        for image in given.images:
            self.asked.setdefault(image, []).extend(members)
        return given.futures

    @property
    def open(self) -> list[Given]:
        return [given for given in self.log if given.open]

    def answer(self, given: Given, failure: str | None = None) -> None:
        for member, future in zip(given.members, given.futures, strict=True):
            if not future.done():
                future.set_result(self.result(given, member, failure))

    def result(self, given: Given, member: int, failure: str | None) -> MemberRun:
        now = time.perf_counter_ns()
        name = self.whole.members[member].name
        if failure is not None:
            return MemberRun(name, "fake", now, now, None, Failure("failed", failure))
        logits = [[self.certainty(image, member), 0] for image in given.images]
        return MemberRun(name, "fake", now, now + 1, np.array(logits, np.float32))


@dataclass(eq=False)
class Staging:
    """A batcher over a `StagedEngine`, and what it counted."""

    engine: StagedEngine
    minimum: int = 1
    quorum: int | None = None
    confidence: float = 0.9
    batches: list[tuple[str, BatchRun]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.engine, lambda one, run: self.batches.append((one.name, run)))
        self.rule = StoppingRule(self.confidence, 0.0, None, self.minimum, always=True)

    def ask(self, *values: float, seconds: float = LONG_S) -> "asyncio.Task[Record]":
        """Ask members in turn for images of these values."""
        return asyncio.create_task(self._ask(values, seconds))

    async def _ask(self, values: Sequence[float], seconds: float) -> Record:
        record = Record(prepared_ns=time.perf_counter_ns())
        model = self.engine.whole
        await ask_in_turn(
            record,
            self.batcher,
            model,
            images(*values),
            self.rule,
            len(model.members) if self.quorum is None else self.quorum,
            record.prepared_ns + round(seconds * 1e9),
        )
        return record

    async def finish(self, *tasks: "asyncio.Task[Any]", order: Callable[[int], int] = lambda _: 0) -> None:
        """Answer open batches, each chosen by `order` from their number, until the tasks are done."""
        await settle()
        while not all(task.done() for task in tasks):
            opened = self.engine.open
            assert opened, "requests wait, and no member has anything to do"
            self.engine.answer(opened[order(len(opened))])
            await settle()

    def check_empty(self) -> None:
        """Check that nothing is left of the requests."""
        check_empty(self.batcher)
        assert not self.batcher._staged
        assert not self.engine.open


def images(*values: float) -> Images:
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)


def model(members: int, max_batch_size: int = 4, temperatures: dict[int, float] | None = None) -> Ensemble:
    one = ensemble(members, max_batch_size, "staged")
    return replace(one, calibration=Calibration(temperatures=temperatures or {}))


def run(use: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(use(), LONG_S))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
