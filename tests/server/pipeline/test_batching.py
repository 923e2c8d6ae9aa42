"""The batcher over a fake engine whose members answer when the test tells them to."""

import asyncio
import time
from contextlib import suppress

import pytest

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError
from coserve_server.observability.record import Record, logged_id
from coserve_server.outcomes import BatchRun
from coserve_server.pipeline.batching import Batcher
from tests.server.fake_engine import run
from tests.server.pipeline.held_engine import (
    FOUR,
    OTHER,
    PAIR,
    HeldEngine,
    ask,
    images,
    settle,
    with_batcher,
)


def test_an_idle_engine_starts_at_once_and_later_requests_form_the_next_batch() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, 1, 1, 1)
        await settle()
        for value in (2, 3, 4):
            ask(batcher, value)
            await settle()
        engine.answer()
        await settle()

    assert with_batcher(use) == [("pair", [1, 1, 1, 1]), ("pair", [2, 3, 4])]


def test_a_batch_as_large_as_the_one_that_runs_waits_no_longer() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, 2)
        await settle()
        ask(batcher, 3)
        await settle()
        assert len(engine.batches_given) == 1
        ask(batcher, 4)
        await settle()
        assert len(engine.batches_given) == 2
        ask(batcher, 5, 6, 7)
        await settle()
        assert len(engine.batches_given) == 2, "two batches are enough"
        engine.answer()
        await settle()

    assert with_batcher(use) == [("pair", [1, 2]), ("pair", [3, 4]), ("pair", [5, 6, 7])]


def test_a_request_is_split_when_a_batch_is_full_and_its_shares_stay_in_order() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        first = ask(batcher, 1)
        second = ask(batcher, 2, 3, 4, 5, 6)
        third = ask(batcher, 7)
        for _ in range(3):
            await settle()
            engine.answer()
        await settle()
        shares = [(share.batch.size, share.rows) for share in await second]
        assert shares == [(4, slice(1, 4)), (3, slice(0, 2))]
        assert [share.rows for share in await first] == [slice(0, 1)]
        assert [share.rows for share in await third] == [slice(2, 3)]

    assert with_batcher(use) == [("pair", [1, 2, 3, 4]), ("pair", [5, 6, 7])]


def test_ensembles_take_turns() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1)
        await settle()
        ask(batcher, 2, 3, 4, 5, 6)
        ask(batcher, 10, model=OTHER)
        for _ in range(4):
            await settle()
            engine.answer()

    assert with_batcher(use) == [("pair", [1]), ("pair", [2, 3, 4, 5]), ("other", [10]), ("pair", [6])]


def test_the_next_batch_begins_when_the_first_lane_is_idle_and_no_third_one() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, 1)
        await settle()
        ask(batcher, 2)
        await settle()
        assert len(engine.batches_given) == 1, "both lanes are busy"
        engine.answer(first=1)
        await settle()
        assert len(engine.batches_given) == 2
        ask(batcher, 3)
        engine.answer(first=1)
        engine.futures[2].set_result(run(0, 1, [1, 2]))
        await settle()
        assert len(engine.batches_given) == 2, "the second lane still has the first batch"
        engine.answer(first=2)
        await settle()

    assert with_batcher(use) == [("pair", [1, 1]), ("pair", [2]), ("pair", [3])]


def test_lanes_of_two_members_each_are_idle_when_one_member_is_left() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, 1, model=FOUR)
        await settle()
        ask(batcher, 2, model=FOUR)
        engine.answer(first=2)
        await settle()
        assert len(engine.batches_given) == 1
        engine.answer(first=3)
        await settle()
        assert len(engine.batches_given) == 2

    assert with_batcher(use) == [("four", [1, 1]), ("four", [2])]


def test_another_ensemble_waits_for_the_slowest_member() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1)
        await settle()
        ask(batcher, 2, model=OTHER)
        ask(batcher, 3)
        engine.answer(first=1)
        await settle()
        assert len(engine.batches_given) == 1, "its lanes use the same cores"
        for _ in range(2):
            engine.answer()
            await settle()

    assert with_batcher(use) == [("pair", [1]), ("other", [2]), ("pair", [3])]


def test_an_engine_that_batches_receives_every_request_at_once() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1)
        ask(batcher, 2, 3, 4, 5, 6)
        await settle()

    given = with_batcher(use, batching=True)
    assert given == [("pair", [1]), ("pair", [2, 3, 4, 5]), ("pair", [6])]


def test_a_request_whose_client_has_gone_is_never_run() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, 1, 1)
        await settle()
        gone = ask(batcher, 2)
        ask(batcher, 3)
        await settle()
        gone.cancel()
        await settle()
        engine.answer()
        await settle()

    assert with_batcher(use) == [("pair", [1, 1, 1]), ("pair", [3])]


def test_the_rest_of_an_abandoned_split_request_is_never_run_and_others_are_unaffected() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        other = ask(batcher, 1)
        gone = ask(batcher, 2, 3, 4, 5)
        await settle()
        gone.cancel()
        await settle()
        assert not any(future.cancelled() for future in engine.futures), "the first request still waits"
        engine.answer()
        assert len(await other) == 1

    assert with_batcher(use) == [("pair", [1, 2, 3, 4])]


def test_an_abandoned_batch_is_told_to_stop() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for share in await ask(batcher, 1):
            share.batch.release()
        await settle()
        assert all(future.cancelled() for future in engine.futures)

    assert with_batcher(use) == [("pair", [1])]


def test_waiting_ends_at_the_deadline_without_harm_to_others() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, 1)
        await settle()
        late = batcher.start(Record(), PAIR, images(2), time.perf_counter_ns() + 50_000_000)
        with pytest.raises(DeadlineError, match="pair did not get its turn before the deadline"):
            await late
        ask(batcher, 3)
        await settle()
        engine.answer()
        await settle()

    assert with_batcher(use) == [("pair", [1, 1]), ("pair", [3])]


@pytest.mark.parametrize("batching", [False, True])
def test_a_request_past_its_deadline_is_never_run(batching: bool) -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        with pytest.raises(DeadlineError):
            await batcher.start(Record(), PAIR, images(1), time.perf_counter_ns())

    assert with_batcher(use, batching) == []


def test_a_failing_engine_fails_the_requests_and_the_next_is_served() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        start = engine.start
        engine.start = None  # type: ignore[method-assign,assignment]
        tasks = [ask(batcher, 1), ask(batcher, 2)]
        with pytest.raises(TypeError):
            await tasks[0]
        with pytest.raises(TypeError):
            await tasks[1]
        engine.start = start  # type: ignore[method-assign]
        ask(batcher, 3)
        await settle()

    assert with_batcher(use) == [("pair", [3])]


def test_closing_cancels_waiting_requests() -> None:
    async def go() -> None:
        engine = HeldEngine()
        batcher = Batcher(engine)
        ask(batcher, 1, 1)
        await settle()
        waiting = ask(batcher, 2)
        await settle()
        batcher.close()
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()

    asyncio.run(go())


def test_every_batch_is_reported_once() -> None:
    sizes: list[int] = []

    async def go() -> None:
        engine = HeldEngine()

        def ran(_: Ensemble, batch: BatchRun) -> None:
            sizes.append(batch.size)

        batcher = Batcher(engine, ran)
        for values in ((1, 1, 1), (2, 3)):
            ask(batcher, *values)
            await settle()
        assert sizes == []
        engine.answer()
        await settle()
        assert sizes == [3]
        engine.answer()
        await settle()

    asyncio.run(go())
    assert sizes == [3, 2]


def test_batches_run_in_no_request_s_context() -> None:
    async def go() -> list[str]:
        engine = HeldEngine()
        batcher = Batcher(engine)
        logged_id.set("first")
        tasks = [ask(batcher, 1)]
        await settle()
        logged_id.set("second")
        tasks.append(ask(batcher, 2))
        await settle()
        engine.answer()
        await asyncio.gather(*tasks)
        await settle()
        engine.answer()
        return engine.contexts

    assert asyncio.run(go()) == ["", ""]
