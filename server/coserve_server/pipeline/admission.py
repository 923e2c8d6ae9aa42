"""How many requests may be in progress at once, and when one that was refused had better come again."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coserve_server.errors import OverloadedError

PACE_OVER = 64
"""Requests that ended last, from which the pace is known."""


class Admission:
    """Counts the requests in progress."""

    def __init__(self, limit: int, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Admit up to `limit` requests, none of which takes longer than `longest_s` seconds."""
        self.in_progress = 0
        self._limit = limit
        self._longest_s = longest_s
        self._clock = clock
        self._ended: deque[float] = deque(maxlen=PACE_OVER)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is in progress.

        Raises:
            OverloadedError: as many are as are allowed.
        """
        if self.in_progress >= self._limit:
            raise OverloadedError(
                f"{self.in_progress} requests are in progress, as many as are allowed", self.retry_after_s()
            )
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1
            self._ended.append(self._clock())

    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, until those in progress will be done at the pace of the last ones."""
        # Up to now rather than to the last end, so that a pace that has come to a halt shows.
        passed_s = self._clock() - self._ended[0] if self._ended else 0
        needed_s = self.in_progress * passed_s / len(self._ended) if self._ended else 1
        return math.ceil(min(max(needed_s, 1), max(self._longest_s, 1)))
