"""Tunes the Python interpreter of a process that does nothing but serve."""

import gc
import sys

from coserve_server.machine.memory import return_freed_memory

SWITCH_INTERVAL_S = 0.0005
"""How long the event loop may hold the GIL while another thread wants it: Python's default of 5 ms is as long
as an inference, after which a member's thread needs the GIL for microseconds."""


def tune_interpreter() -> None:
    """Make threads switch sooner, and freed memory return to the system; call before threads start."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return_freed_memory()


def freeze_objects() -> None:
    """Exclude everything loaded so far from garbage collection: scanning it takes over 50 ms each time."""
    gc.collect()
    gc.freeze()
