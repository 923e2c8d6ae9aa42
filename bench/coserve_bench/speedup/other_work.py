"""Measures how much of the machine other processes use meanwhile."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
IDLE = (3, 4)
"""Fields of a processor's time during which it is idle."""
FIELDS = 8
"""User, nice, system, idle, iowait, irq, softirq, steal; the later fields are part of user and nice."""


class OtherWork:
    """Counts the work of other processes, from its creation on."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float | None:
        """Return the average number of cores that others kept busy; None if the system has no /proc.

        Other guests of a hypervisor count too.
        """
        now = self._now()
        if self._start is None or now is None:
            return None
        busy, own, elapsed = (after - before for before, after in zip(self._start, now, strict=True))
        return max(0.0, (busy - own) / elapsed)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Return the seconds that all processors were busy, that this process computed, and of the clock."""
        if not STAT.exists():
            return None
        ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1 : FIELDS + 1]]
        busy = sum(ticks) - sum(ticks[field] for field in IDLE)
        return busy / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()
