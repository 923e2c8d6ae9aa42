import math
from datetime import datetime, timezone

import httpx
import pytest

from coserve_client.retries import Backoff, retry_after

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("Thu, 01 Jan 2026 12:00:07 GMT", 7),
        ("Thursday, 01-Jan-26 12:00:07 GMT", 7),  # RFC 850 format; RFC 9110 requires recipients to accept it
        ("Thu, 01 Jan 2026 12:00:07 -0000", 7),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        (f"Thu, 01 Jan {10**400} 12:00:00 GMT", None),
        ("²", None),
    ],
)
def test_parses_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def unavailable(value: str | None = None) -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": value} if value else {})


def test_waits_as_long_as_requested_up_to_a_cap() -> None:
    backoff = Backoff(retries=2, seconds=100)
    assert backoff.delay(unavailable("7")) == 7
    assert backoff.delay(unavailable("9" * 400)) == 30
    assert backoff.delay(unavailable("0")) is None


def test_backs_off_with_full_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low + high)
    backoff = Backoff(retries=10, seconds=1000)
    assert [backoff.delay(unavailable("soon")) for _ in range(9)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_starts_no_retry_after_the_time_limit() -> None:
    assert Backoff(retries=1, seconds=5).delay(unavailable("6")) is None


@pytest.mark.parametrize("seconds", [math.inf, 10**400])
def test_the_time_limit_may_be_of_any_length(seconds: float) -> None:
    assert Backoff(retries=1, seconds=seconds).delay(unavailable("6")) == 6


@pytest.mark.parametrize("status", [200, 400, 404, 413, 429, 500, 502, 504])
def test_retries_nothing_but_503(status: int) -> None:
    assert Backoff(retries=5, seconds=60).delay(httpx.Response(status, headers={"Retry-After": "0"})) is None
