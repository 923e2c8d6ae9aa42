"""Limits the requests in progress, and estimates when a refused client should retry."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coserve_server.errors import OverloadedError

PACE_OVER = 64
"""Number of most recent requests from which the pace is computed."""


class Admission:
    """Counts the requests in progress, and refuses those beyond a limit."""

    def __init__(self, limit: int, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Admit up to `limit` requests at once.

        Args:
            longest_s: limit on the duration of a request, and so on the estimate.
            clock: returns seconds.
        """
        self.in_progress = 0
        self._limit = limit
        self._longest_s = longest_s
        self._clock = clock
        self._ended: deque[float] = deque(maxlen=PACE_OVER)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as in progress within the context.

        Raises:
            OverloadedError: the limit is reached.
        """
        if self.in_progress >= self._limit:
            raise OverloadedError(
                f"{self.in_progress} requests are in progress, the most allowed; retry later",
                self.estimate_retry_s(),
            )
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1
            self._ended.append(self._clock())

    def estimate_retry_s(self) -> int:
        """Estimate the seconds, at least 1, until the requests in progress end at the recent pace."""
        # Measure up to now rather than to the last end, so that a stall lengthens the estimate.
        passed_s = self._clock() - self._ended[0] if self._ended else 0
        needed_s = self.in_progress * passed_s / len(self._ended) if self._ended else 1
        return math.ceil(min(max(needed_s, 1), max(self._longest_s, 1)))
