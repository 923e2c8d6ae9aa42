"""When a request is sent again, and after how long."""

import random
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx

BASE_SECONDS = 0.25
CAP_SECONDS = 30.0


class Attempts:
    """The attempts of one call, which begins now.

    Only 503 is retried: any other failure may already have had its effect or its cost.

    Args:
        retries: how often the request is sent again at most.
        seconds: no retry starts later than this after the call began.
    """

    def __init__(self, retries: int, seconds: float) -> None:
        self._left = retries
        self._deadline = time.monotonic() + seconds
        self._bound = BASE_SECONDS

    def wait(self, response: httpx.Response) -> float | None:
        """Seconds until the request is sent again, or None where this response is final.

        `Retry-After` (RFC 9110, section 10.2.3) is honoured up to `CAP_SECONDS`; without it the wait is
        exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015).
        """
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or self._left <= 0:
            return None
        asked = retry_after(response.headers.get("Retry-After", ""), datetime.now(timezone.utc))
        jittered = random.uniform(0, self._bound)  # noqa: S311 (nothing secret)
        wait = min(jittered if asked is None else asked, CAP_SECONDS)
        self._left -= 1
        self._bound = min(2 * self._bound, CAP_SECONDS)
        return wait if time.monotonic() + wait <= self._deadline else None


def retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks for, or None where it says nothing valid.

    Args:
        value: delay in seconds or an HTTP date.
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
