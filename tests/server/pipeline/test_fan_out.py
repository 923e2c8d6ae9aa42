import asyncio
import time
from typing import Any

import numpy as np
import pytest

from coserve_server.errors import DeadlineError, NoQuorumError
from coserve_server.observability.record import Record
from coserve_server.outcomes import BatchRun, Failure, Share, overlap
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.fan_out import fan_out, queue_and_inference
from tests.server.fake_engine import FakeEngine, ensemble, run


def fan(engine: FakeEngine, images: int = 1, quorum: int = 2, seconds: float = 30) -> Record:
    record = Record()

    async def go() -> None:
        batch = np.zeros((images, 3, 4, 4), np.float32)
        record.prepared_ns = time.perf_counter_ns()
        deadline_ns = record.prepared_ns + round(seconds * 1e9)
        await fan_out(record, Batcher(engine), engine.ensembles["pair"], batch, quorum, deadline_ns)

    asyncio.run(go())
    return record


def times_ms(record: Record) -> list[tuple[float, float]]:
    return [(run.start_ns / 1e6, run.end_ns / 1e6) for run in record.members]


def test_members_have_their_own_times() -> None:
    answer = fan(FakeEngine(ensemble(), scripts=[[run(105, 115, [1, 2]), run(100, 112, [3, 4])]]))
    assert times_ms(answer) == [(105, 115), (100, 112)]
    assert overlap(share.runs for share in answer.shares) == pytest.approx((10 + 12) / 15)


@pytest.mark.parametrize(
    ("second", "expected"), [((0, 10), 2.0), ((10, 20), 1.0), ((15, 25), 0.8), ((5, 15), 20 / 15)]
)
def test_overlap(second: tuple[float, float], expected: float) -> None:
    answer = fan(FakeEngine(ensemble(), scripts=[[run(0, 10, [1, 2]), run(*second, [3, 4])]]))
    assert overlap(share.runs for share in answer.shares) == pytest.approx(expected)


def test_large_requests_are_split_and_joined_in_order() -> None:
    scripts = [
        [run(0, 10, [1, 1], [2, 2]), run(0, 10, [5, 5], [6, 6])],
        [run(90, 95, [3, 3]), run(95, 100, [7, 7])],
    ]
    engine = FakeEngine(ensemble(max_batch_size=2), scripts=scripts)
    answer = fan(engine, images=3)
    assert [len(batch) for batch in engine.given] == [2, 1]
    np.testing.assert_array_equal(answer.members[0].logits, [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(answer.members[1].logits, [[5, 5], [6, 6], [7, 7]])
    assert times_ms(answer) == [(0, 95), (0, 100)]
    assert overlap(share.runs for share in answer.shares) == pytest.approx((20 + 10) / (10 + 10)), (
        "waiting between batches does not count"
    )


def test_a_member_that_fails_in_one_batch_is_left_out_of_all() -> None:
    scripts = [
        [run(0, 1, [1, 1], [2, 2]), run(0, 1, [5, 5], [6, 6])],
        [run(2, 3, [3, 3]), run(2, 3, error="broke")],
    ]
    answer = fan(FakeEngine(ensemble(), scripts=scripts), images=3, quorum=1)
    assert answer.members[1].logits is None
    assert answer.members[1].failure == Failure("failed", "broke")
    assert answer.members[0].failure is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    scripts = [[run(0, 1, [1, 1]), run(0, 1, [5, value])]]
    answer = fan(FakeEngine(ensemble(), scripts=scripts), quorum=1)
    assert answer.members[1].failure == Failure("failed", "logits are not finite")
    assert answer.members[1].logits is None
    assert answer.members[1].device is not None


@pytest.mark.parametrize("rows", [[[5]], [[5, 5, 5]], [[5, 5], [5, 5]], [5, 5]])
def test_logits_of_another_shape_are_an_error(rows: list[Any]) -> None:
    scripts = [[run(0, 1, [1, 1]), run(0, 1, *rows)]]
    answer = fan(FakeEngine(ensemble(), scripts=scripts), quorum=1)
    shape = list(np.shape(rows))
    assert answer.members[1].failure == Failure(
        "failed", f"gave logits {shape}, expected [1, 2] (batch, labels)"
    )
    assert answer.members[1].logits is None


def test_below_the_quorum_the_failures_are_named() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 1]), run(0, 1, error="no memory")]])
    with pytest.raises(NoQuorumError, match=r"pair: 1 of 2 members answered, 2 needed \(m1: no memory\)"):
        fan(engine)
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, error="one"), run(0, 1, error="two")]])
    with pytest.raises(NoQuorumError, match=r"0 of 2 members answered, 1 needed \(m0: one; m1: two\)"):
        fan(engine, quorum=1)


def test_the_engine_gets_the_requests_record() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 1]), run(0, 1, [2, 2])]])
    assert fan(engine) in engine.records[0]


@pytest.mark.parametrize(
    ("batches", "queue", "inference"),
    [
        ([(100, 130)], 0, 30),
        ([(110, 130)], 10, 20),
        ([(110, 130), (150, 180)], 10 + 20, 20 + 30),
        ([(110, 130), (125, 150)], 10, 20 + 20),
        ([(110, 150), (120, 140), (145, 160)], 10, 40 + 10),
        ([(90, 95), (105, 115)], 5, 10),
    ],
    ids=["at once", "after a wait", "two", "overlapping", "within another", "before the request waited"],
)
def test_time_with_no_batch_at_the_members_is_queueing(
    batches: list[tuple[int, int]], queue: int, inference: int
) -> None:
    async def go() -> tuple[int, int]:
        finished = asyncio.get_running_loop().create_future()
        runs = [(BatchRun(1, began, [], [], finished), ended) for began, ended in batches]
        return queue_and_inference(100, [Share(run, slice(0, 1), (), ended) for run, ended in runs])

    assert asyncio.run(go()) == (queue, inference)


def test_a_batch_begins_when_its_first_member_does() -> None:
    async def go() -> int:
        members = [asyncio.get_running_loop().create_future() for _ in range(3)]
        members[0].set_result(run(150, 180, [1, 1]))
        members[1].set_result(run(140, 170, [1, 1]))
        share = Share(BatchRun(1, 110, ["m0", "m1", "m2"], members, members[0]), slice(0, 1))
        assert share.began_ns == 110
        share.settle(2)
        return share.began_ns

    assert asyncio.run(go()) == 140_000_000


def test_a_late_member_is_left_out_and_told_to_stop() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 1]), None]])
    answer = fan(engine, quorum=1, seconds=0.05)
    late = answer.members[1]
    assert late.late
    assert late.failure == Failure("late", "no answer before the deadline")
    assert (late.device, late.logits) == (None, None)
    assert engine.futures[1].cancelled()
    assert overlap(share.runs for share in answer.shares) == 1


def test_below_the_quorum_for_lack_of_time_is_a_deadline() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 1]), None]])
    with pytest.raises(DeadlineError, match="m1: no answer before the deadline"):
        fan(engine, seconds=0.05)


def test_waiting_for_the_turn_ends_at_the_deadline() -> None:
    one = ensemble()
    batch = np.zeros((1, 3, 4, 4), np.float32)
    engine = FakeEngine(one, scripts=[[None, None]])

    async def go() -> None:
        batcher = Batcher(engine)
        now = time.perf_counter_ns()
        await batcher.start(Record(), one, np.concatenate([batch, batch]), now + 30_000_000_000)
        with pytest.raises(DeadlineError, match="did not get its turn"):
            await fan_out(Record(), batcher, one, batch, 2, now + 50_000_000)

    asyncio.run(go())
