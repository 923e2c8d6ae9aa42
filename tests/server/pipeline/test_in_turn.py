"""Requests whose members are late, fail or have bugs."""

import gc
import math
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError
from coserve_server.observability.record import Record
from coserve_server.outcomes import overlap
from coserve_server.pipeline.early_stopping import line as lines
from tests.server.pipeline.early_stopping.staged import StagedEngine, Staging, model, run, settle

SURE = 5.0
"""A logit whose probability is above the confidence of 0.9; 0 is an even chance."""


def test_a_late_member_is_replaced_after_half_of_the_time() -> None:
    engine = StagedEngine(model(2), 2, lambda _image, _member: SURE)
    staging = Staging(engine, quorum=1)

    async def use() -> None:
        task = staging.ask(1.0, seconds=4)
        await settle()
        assert [given.members for given in engine.log] == [[0]]
        while len(engine.log) == 1:
            await settle()
        assert engine.log[1].members == [1]
        engine.answer(engine.log[1])
        record = await task
        assert record.answered == [(1,)]
        assert (record.stopped_early, record.lacks_members) == (1, False)
        assert engine.log[0].futures[0].cancelled(), "nobody wants the late answer any more"
        staging.check_empty()

    run(use)


def test_a_late_members_answer_still_counts_if_no_other_made_the_image_sure() -> None:
    engine = StagedEngine(model(2), 2, lambda _image, _member: 0)
    staging = Staging(engine)

    async def use() -> None:
        task = staging.ask(1.0)
        await settle()
        (line,) = staging.batcher._staged.values()
        (request,) = line._unfinished
        line.overtake(request)
        await settle()
        engine.answer(engine.log[1])
        await settle()
        assert not task.done()
        engine.answer(engine.log[0])
        assert (await task).answered == [(0, 1)]
        staging.check_empty()

    run(use)


def test_after_the_deadline_the_quorum_counts() -> None:
    async def use(quorum: int, expected: type[Exception] | None) -> None:
        engine = StagedEngine(model(2), 1, lambda _image, _member: 0)
        staging = Staging(engine, quorum=quorum)
        task = staging.ask(1.0, seconds=1.5)
        await settle()
        engine.answer(engine.log[0])
        if expected is not None:
            with pytest.raises(expected, match=r"1 of 2 members answered, 2 needed \(m1: no answer before"):
                await task
        else:
            record = await task
            assert (record.answered, record.lacks_members, record.stopped_early) == ([(0,)], True, 0)
            assert [member.late for member in record.members] == [False, True]
            assert [share.runs[0].late for share in record.shares] == [False, True], "for traces"
            assert overlap(share.runs for share in record.shares) == 1
        await settle()
        staging.check_empty()

    run(lambda: use(1, None))
    run(lambda: use(2, DeadlineError))


def test_without_a_turn_before_the_deadline_there_is_no_answer() -> None:
    engine = StagedEngine(model(2), 1, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        with pytest.raises(DeadlineError, match="did not get its turn"):
            await staging.ask(1.0, seconds=0)
        assert engine.log == []

    run(use)


def test_a_bug_of_the_engine_fails_the_requests_and_leaves_nothing() -> None:
    engine = StagedEngine(model(2), 2, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        first = staging.ask(1.0, 2.0)
        await settle()
        engine.log[0].futures[0].set_exception(ZeroDivisionError("bug"))
        with pytest.raises(RuntimeError, match="m0: bug"):
            await first
        engine.start = broken  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await staging.ask(3.0)
        await settle()
        staging.check_empty()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    run(use)


@pytest.mark.parametrize("inline_values", [0, 2**15])
def test_an_error_while_answers_are_judged_reaches_the_request(
    monkeypatch: pytest.MonkeyPatch, inline_values: int
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(lines, "confidences", broken)
    monkeypatch.setattr(lines, "INLINE_VALUES", inline_values)
    engine = StagedEngine(model(2), 2, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        task = staging.ask(1.0)
        await settle()
        engine.answer(engine.log[0])
        with pytest.raises(MemoryError, match="too large"):
            await task
        await settle()
        staging.check_empty()

    run(use)


def test_a_request_s_images_are_freed_at_once() -> None:
    """Waiting for a garbage collection of all generations would keep those of thousands of requests."""
    engine = StagedEngine(model(2), 2, lambda image, _member: SURE * (image != 0))
    staging = Staging(engine)
    kept = []
    take = engine.start

    def start(one: Ensemble, batch: Images, records: Sequence[Record], copy: int) -> Any:
        kept.append(weakref.ref(batch.base))
        return take(one, batch, records, copy)

    engine.start = start  # type: ignore[method-assign]

    async def use() -> None:
        task = staging.ask(0.0, 1.0, 2.0)
        await staging.finish(task)
        del task
        engine.log.clear()
        staging.batches.clear()
        await settle()
        assert kept
        assert all(one() is None for one in kept)

    gc.disable()
    try:
        run(use)
    finally:
        gc.enable()


def test_wrong_logits_count_as_failures() -> None:
    engine = StagedEngine(model(2), 2, lambda image, member: math.nan if member == 0 else SURE)
    staging = Staging(engine)

    async def use() -> None:
        task = staging.ask(1.0)
        await staging.finish(task)
        record = task.result()
        assert record.answered == [(1,)]
        assert record.members[0].failure is not None
        assert record.members[0].failure.reason == "logits are not finite"
        assert not record.lacks_members

    run(use)
