"""Decide whether to retry a request, and how long to wait before."""

import random
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from numbers import Real
from operator import index
from typing import Any

import httpx

from coserve_client.errors import InputError

BASE_SECONDS = 0.25
CAP_SECONDS = 30.0
MAX_SECONDS = 1e9
"""Practically no limit."""


def check_retries(retries: Any, seconds: Any) -> None:
    """Check a client's limits of retrying.

    Raises:
        InputError: `retries` is not a whole number, `seconds` is not a number, or one is negative.
    """
    try:
        number = index(retries)
    except TypeError as error:
        raise InputError(f"retries must be a whole number, not {retries!r}") from error
    if number < 0:
        raise InputError(f"retries must not be negative: {number}")
    is_number = isinstance(seconds, Real)
    # NaN is not 0 or more either.
    if not (is_number and seconds >= 0):
        raise InputError(f"retry_seconds must be a non-negative number of seconds, not {seconds!r}")


class Backoff:
    """The retry state of one call, which starts now.

    Only 503 is retried: after any other failure the request may already have had its effect or its cost.

    Args:
        retries: maximum number of retries.
        seconds: time after which no retry starts.
    """

    def __init__(self, retries: int, seconds: float) -> None:
        self._left = retries
        # An integer may be too large for a float.
        self._deadline = time.monotonic() + min(seconds, MAX_SECONDS)
        self._bound = BASE_SECONDS

    def delay(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before the next retry, or None if the response is final.

        `Retry-After` (RFC 9110, section 10.2.3) is honoured up to `CAP_SECONDS`. Without it, the delay is
        exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015).
        """
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or self._left <= 0:
            return None
        requested = retry_after(response.headers.get("Retry-After", ""), datetime.now(timezone.utc))
        jittered = random.uniform(0, self._bound)  # noqa: S311 (not a secret)
        delay = min(jittered if requested is None else requested, CAP_SECONDS)
        self._left -= 1
        self._bound = min(2 * self._bound, CAP_SECONDS)
        return delay if time.monotonic() + delay <= self._deadline else None


def retry_after(value: str, now: datetime) -> float | None:
    """Parse a `Retry-After` header and return its delay in seconds, or None if it is not valid.

    Args:
        value: a number of seconds or an HTTP date.
        now: the current time, with a time zone.
    """
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - now).total_seconds())
