"""Decide whether to retry a request, and how long to wait before."""

import random
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx

BASE_SECONDS = 0.25
CAP_SECONDS = 30.0


class Backoff:
    """The retry state of one call, which starts now.

    Only 503 is retried: after any other failure the request may already have had its effect or its cost.

    Args:
        retries: maximum number of retries.
        seconds: time after which no retry starts.
    """

    def __init__(self, retries: int, seconds: float) -> None:
        self._left = retries
        self._deadline = time.monotonic() + seconds
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
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - now).total_seconds())
