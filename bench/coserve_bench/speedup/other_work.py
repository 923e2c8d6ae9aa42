"""How much of the machine other processes take while something is measured."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
IDLE = (3, 4)
"""Fields of a processor's time in which it does nothing."""
FIELDS = 8
"""User, nice, system, idle, iowait, irq, softirq, steal; those after are part of user and nice."""


class OtherWork:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float | None:
        """Busy with others' work, on average, a hypervisor's other guests included; None without /proc."""
        start, now = self._start, self._now()
        if start is None or now is None:
            return None
        busy, own, elapsed = (after - before for before, after in zip(start, now, strict=True))
        return max(0.0, (busy - own) / elapsed)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds that all processors were busy, that this process computed, and of the clock."""
        if not STAT.exists():
            return None
        ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1 : FIELDS + 1]]
        busy = sum(ticks) - sum(ticks[field] for field in IDLE)
        return busy / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()
