"""Batches side by side in copies of an ensemble."""

import asyncio

from coserve_server.pipeline.batching import Batcher
from tests.server.fake_engine import run
from tests.server.pipeline.held_engine import FOUR, OTHER, HeldEngine, ask, check_empty, settle

TWO = [{0, 1}, {2, 3}]


def test_a_batch_starts_while_a_copy_is_free() -> None:
    async def go() -> HeldEngine:
        engine = HeldEngine(pair=TWO, other=TWO)
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
        check_empty(batcher)
        return engine

    given = asyncio.run(go()).batches_given
    assert given[3:] == [("other", [9]), ("pair", [4, 5])]


def test_an_idle_copy_takes_a_batch_while_two_are_at_another_one() -> None:
    async def go() -> list[int]:
        engine = HeldEngine(pair=TWO)
        batcher = Batcher(engine)
        for values in ((1, 1), (2, 2), (3, 3)):
            ask(batcher, *values)
            await settle()
        await engine.end(1)
        ask(batcher, 4)
        await settle()
        return engine.copies

    assert asyncio.run(go()) == [0, 1, 0, 1]


def test_a_batch_that_waits_at_the_lanes_waits_where_least_is_left() -> None:
    async def go() -> list[int]:
        engine = HeldEngine(four=TWO)
        batcher = Batcher(engine)
        for _ in range(2):
            ask(batcher, 1, model=FOUR)
            await settle()
        engine.runs[1][0].set_result(run(0, 1, [1, 2]))
        ask(batcher, 1, model=FOUR)
        await settle()
        return engine.copies

    assert asyncio.run(go()) == [0, 1, 1]


def test_a_batch_as_large_as_the_oldest_waits_at_the_lanes() -> None:
    async def go() -> HeldEngine:
        engine = HeldEngine(pair=TWO, other=TWO)
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
