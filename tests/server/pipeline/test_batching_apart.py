"""The batcher keeps apart what must not share a batch or a core, and leaves nothing behind."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.outcomes import BatchRun
from coserve_server.pipeline.batching import Batcher
from tests.server.pipeline.held_engine import (
    NEVER,
    OTHER,
    PAIR,
    HeldEngine,
    ask,
    check_empty,
    images,
    settle,
    with_batcher,
)


def test_ensembles_on_other_cores_do_not_wait_for_each_other() -> None:
    async def go() -> HeldEngine:
        engine = HeldEngine(pair=[{0}], other=[{1}])
        batcher = Batcher(engine)
        for values, model in (((1, 1), PAIR), ((10, 10, 10), OTHER), ((2,), PAIR), ((20,), OTHER)):
            ask(batcher, *values, model=model)
            await settle()
        assert engine.batches_given == [("pair", [1, 1]), ("other", [10, 10, 10])]
        gone = ask(batcher, 30, model=OTHER)
        await settle()
        gone.cancel()
        for _ in range(3):
            await settle()
            engine.answer()
        await settle()
        check_empty(batcher)
        return engine

    assert asyncio.run(go()).batches_given[2:] == [("pair", [2]), ("other", [20])]


def test_versions_of_an_ensemble_share_no_batch() -> None:
    reloaded = replace(PAIR, version="2")

    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1)
        await settle()
        ask(batcher, 2)
        ask(batcher, 3, model=reloaded)
        ask(batcher, 4)
        for _ in range(3):
            await settle()
            engine.answer()
        await settle()

    assert with_batcher(use) == [("pair", [1]), ("pair", [2, 4]), ("pair", [3])]


@pytest.mark.parametrize("turns", range(6))
def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind(turns: int) -> None:
    async def go() -> None:
        engine = HeldEngine()
        batcher = Batcher(engine)
        gone = ask(batcher, 1)
        for _ in range(turns):
            await asyncio.sleep(0)
        if gone.done():
            for share in gone.result():
                share.batch.release()
        else:
            gone.cancel()
        await settle()
        assert gone.done()
        assert gone.cancelled() or turns > 1, "leaving is no error"
        assert all(future.cancelled() for future in engine.futures)
        check_empty(batcher)

    asyncio.run(go())


def test_the_images_of_a_lone_request_are_not_copied() -> None:
    async def go() -> None:
        engine = HeldEngine()
        given = images(1, 2)
        start = engine.start
        received = []

        def note(ensemble: Ensemble, batch: np.ndarray, *rest: object) -> object:
            received.append(batch)
            return start(ensemble, batch, *rest)  # type: ignore[arg-type]

        engine.start = note  # type: ignore[method-assign,assignment]
        await Batcher(engine).start(Record(), PAIR, given, NEVER)
        assert np.shares_memory(received[0], given)

    asyncio.run(go())


def test_a_batch_is_reported_with_its_ensemble() -> None:
    reported: list[tuple[str, int]] = []

    async def go() -> None:
        engine = HeldEngine(pair=[{0}], other=[{1}])

        def ran(ensemble: Ensemble, batch: BatchRun) -> None:
            reported.append((ensemble.name, batch.size))

        batcher = Batcher(engine, ran)
        ask(batcher, 1, 2)
        ask(batcher, 3, model=OTHER)
        await settle()
        engine.answer()
        await settle()

    asyncio.run(go())
    assert sorted(reported) == [("other", 1), ("pair", 2)]
