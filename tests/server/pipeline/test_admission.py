from contextlib import AbstractContextManager

import pytest

from coserve_server.errors import OverloadedError
from coserve_server.pipeline.admission import Admission

UNFINISHED: list[AbstractContextManager[None]] = []


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def busy(limit: int, ended: int, seconds_each: float, longest_s: float = 60) -> tuple[Admission, Clock]:
    """Return an admission that is full, after some requests that ran one after another."""
    clock = Clock()
    admission = Admission(limit, longest_s, clock)
    for _ in range(ended):
        with admission.admitted():
            clock.now += seconds_each
    for _ in range(limit):
        unfinished = admission.admitted()
        unfinished.__enter__()
        # A context that is garbage-collected would end.
        UNFINISHED.append(unfinished)
    return admission, clock


def test_requests_beyond_the_limit_are_refused_until_one_ends() -> None:
    admission, _ = busy(limit=1, ended=0, seconds_each=0)
    with pytest.raises(OverloadedError, match="1 requests are in progress") as refused, admission.admitted():
        pass
    assert refused.value.retry_after_s == 1
    assert admission.in_progress == 1, "a refused request is not counted"


@pytest.mark.parametrize(
    ("seconds_each", "wait"),
    [(0.001, 1), (0.9, 9), (2.0, 20), (100.0, 60)],
    ids=["at least one", "rounded up", "long", "never beyond the deadline"],
)
def test_a_refusal_estimates_when_the_requests_in_progress_end(seconds_each: float, wait: int) -> None:
    admission, _ = busy(limit=10, ended=30, seconds_each=seconds_each)
    assert admission.estimate_retry_s() == pytest.approx(wait, abs=1)


def test_a_stall_lengthens_the_estimate() -> None:
    admission, clock = busy(limit=10, ended=10, seconds_each=0.1)
    before = admission.estimate_retry_s()
    clock.now += 20
    assert before == 1
    assert admission.estimate_retry_s() > 15


def test_the_pace_is_that_of_the_latest_requests() -> None:
    clock = Clock()
    admission = Admission(10, 1000, clock)
    for seconds in [10.0] * 200 + [0.1] * 64:
        with admission.admitted():
            clock.now += seconds
    admission.in_progress = 100
    assert admission.estimate_retry_s() == 10


def test_one_ended_request_tells_a_pace() -> None:
    admission, clock = busy(limit=2, ended=1, seconds_each=3)
    clock.now += 3
    assert admission.estimate_retry_s() == 6


@pytest.mark.parametrize("longest_s", [0.2, 1, 2, 7])
def test_no_estimate_is_longer_than_a_request_may_take(longest_s: float) -> None:
    admission, clock = busy(limit=10, ended=1, seconds_each=1, longest_s=longest_s)
    clock.now += 100
    assert admission.estimate_retry_s() == max(1, longest_s)
