"""What members did, for a batch and for the requests that share it."""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from coserve_server.outcomes import BatchRun, Failure, MemberRun, Share, join
from tests.server.fake_engine import run

LATE = Failure("late", "no answer before the deadline")


def with_batch(size: int, members: int, use: Callable[[BatchRun], None]) -> None:
    """Call `use` with a batch that began at 5 ns, whose members have not answered."""

    async def go() -> None:
        futures = [asyncio.get_running_loop().create_future() for _ in range(members)]
        finished = asyncio.gather(*futures, return_exceptions=True)
        use(BatchRun(size, 5, [f"m{i}" for i in range(members)], futures, finished))

    asyncio.run(go())


def test_a_batchs_outcomes_are_those_of_its_members_in_their_order() -> None:
    def use(batch: BatchRun) -> None:
        answered = run(1, 2, [1, 2])
        batch.members[0].set_result(answered)
        batch.members[1].cancel()
        batch.members[2].set_exception(MemoryError("no memory"))
        before = time.perf_counter_ns()
        first, cancelled, raised = batch.outcomes()
        after = time.perf_counter_ns()
        assert first is answered
        assert (cancelled.name, cancelled.start_ns, cancelled.failure) == ("m1", 5, LATE)
        assert (raised.name, raised.start_ns, raised.failure) == ("m2", 5, Failure("failed", "no memory"))
        for failed in (cancelled, raised):
            assert (failed.device, failed.logits) == (None, None)
            assert before <= failed.end_ns <= after

    with_batch(1, 3, use)


def test_a_late_member_worked_from_the_batchs_begin_to_the_end_of_waiting() -> None:
    def use(batch: BatchRun) -> None:
        share = Share(batch, slice(0, 1))
        before = time.perf_counter_ns()
        share.settle(2)
        (late,) = share.runs
        assert (late.name, late.start_ns, late.failure) == ("m0", 5, LATE)
        assert before <= late.end_ns == share.ended_ns <= time.perf_counter_ns()

    with_batch(1, 1, use)


def test_requests_that_share_a_batch_get_their_own_rows() -> None:
    def use(batch: BatchRun) -> None:
        batch.members[0].set_result(run(0, 1, [1, 2], [3, 4], [5, 6]))
        first = Share(batch, slice(0, 2))
        second = Share(batch, slice(2, 3))
        for share in (first, second):
            share.settle(2)
        np.testing.assert_array_equal(first.runs[0].logits, [[1, 2], [3, 4]])
        np.testing.assert_array_equal(second.runs[0].logits, [[5, 6]])

    with_batch(3, 1, use)


def test_not_a_number_concerns_the_request_that_has_it_alone() -> None:
    def use(batch: BatchRun) -> None:
        batch.members[0].set_result(run(0, 1, [1, 2], [3, np.nan]))
        first = Share(batch, slice(0, 1))
        second = Share(batch, slice(1, 2))
        for share in (first, second):
            share.settle(2)
        assert first.runs[0].failure is None
        assert second.runs[0].failure == Failure("failed", "logits are not finite")

    with_batch(2, 1, use)


def test_an_engine_that_forgets_a_member_is_an_error() -> None:
    def use(batch: BatchRun) -> None:
        for future in batch.members:
            future.set_result(run(0, 1, [1, 2]))
        batch.names = ["m0", "m1"]
        with pytest.raises(ValueError, match="shorter"):
            batch.outcomes()
        with pytest.raises(ValueError, match="shorter"):
            Share(batch, slice(0, 1)).settle(2)

    with_batch(1, 1, use)


def member(start: int, end: int, failure: Failure | None = None, device: str | None = "cpu") -> MemberRun:
    logits = None if failure else np.array([[start, end]], np.float32)
    return MemberRun("m", device, start, end, logits, failure)


FAILED = Failure("failed", "broke")
STUCK = Failure("stuck", "never started")


@pytest.mark.parametrize(
    ("runs", "start", "end", "failure"),
    [
        ([member(1, 2), member(3, 4)], 1, 4, None),
        ([member(1, 2), member(3, 4), member(5, 6)], 1, 6, None),
        ([member(1, 2, LATE, None), member(3, 4), member(5, 6)], 3, 6, LATE),
        ([member(1, 2), member(3, 4), member(5, 6, LATE, None)], 1, 4, LATE),
        ([member(1, 2, LATE, None), member(3, 4, FAILED)], 3, 4, FAILED),
        ([member(1, 2, STUCK), member(3, 4, FAILED)], 1, 4, STUCK),
    ],
    ids=["answered", "three", "late first", "late last", "late and failed", "failed twice"],
)
def test_joined_runs_span_what_was_not_late_and_fail_if_any_did(
    runs: Sequence[MemberRun], start: int, end: int, failure: Failure | None
) -> None:
    joined = join(runs)
    assert (joined.name, joined.device, joined.start_ns, joined.end_ns) == ("m", "cpu", start, end)
    assert joined.failure == failure
    if failure is None:
        np.testing.assert_array_equal(joined.logits, [[r.start_ns, r.end_ns] for r in runs])
    else:
        assert joined.logits is None


def test_runs_that_were_all_late_join_to_a_late_one() -> None:
    joined = join([member(1, 2, LATE, None), member(3, 4, LATE, None)])
    assert (joined.device, joined.start_ns, joined.end_ns, joined.failure) == (None, 1, 4, LATE)
