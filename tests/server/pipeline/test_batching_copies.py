"""Batches side by side in copies of an ensemble."""

import asyncio

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.pipeline.batching import Batcher
from tests.server.pipeline.held_engine import OTHER, HeldEngine, ask, settle


class Copies(HeldEngine):
    """Has two copies of each ensemble."""

    def copies(self, ensemble: Ensemble) -> int:
        return 2


def test_a_batch_starts_while_a_copy_is_free() -> None:
    async def go() -> HeldEngine:
        engine = Copies()
        batcher = Batcher(engine)
        for values in ((1, 1), (2,), (3,)):
            ask(batcher, *values)
            await settle()
        assert engine.batches_given == [("pair", [1, 1]), ("pair", [2])], "the third would have to wait"
        ask(batcher, 9, model=OTHER)
        await settle()
        engine.answer(1)
        await settle()
        assert engine.batches_given[2:] == [("pair", [3])], "a lane of the first copy is idle"
        ask(batcher, 4)
        ask(batcher, 5)
        await settle()
        assert len(engine.batches_given) == 3, "one batch more than there are copies is enough"
        for _ in range(4):
            engine.answer()
            await settle()
        assert not batcher._resources
        return engine

    given = asyncio.run(go()).batches_given
    assert given[3:] == [("other", [9]), ("pair", [4, 5])]


def test_a_batch_as_large_as_the_oldest_waits_at_the_lanes() -> None:
    async def go() -> HeldEngine:
        engine = Copies()
        batcher = Batcher(engine)
        for values in ((1,), (2,), (3,), (4,)):
            ask(batcher, *values)
            await settle()
        given = list(engine.batches_given)
        for _ in range(3):
            engine.answer()
            await settle()
        assert given == [("pair", [1]), ("pair", [2]), ("pair", [3])]
        return engine

    asyncio.run(go())
