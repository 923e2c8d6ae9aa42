"""Process-wide changes by `coserve serve`; programs that call `coserve_server.serve` are left alone."""

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

SWITCH_INTERVAL_S = 0.0005
"""How long the event loop may hold the GIL while another thread wants it: Python's default of 5 ms is as long
as an inference, after which a member's thread needs the GIL for microseconds."""
EXIT_GRACE_S = 2


def tune_interpreter() -> None:
    """Make threads switch sooner, and freed memory return to the system; call before threads start."""
    from coserve_server.machine.memory import return_freed_memory

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return_freed_memory()


def freeze_objects() -> None:
    """Exclude what is loaded by now from garbage collection: scanning it takes over 50 ms each time."""
    gc.collect()
    gc.freeze()


@contextmanager
def exit_in_time() -> Iterator[None]:
    """End the process soon after the block, with its status, even if a library's thread never ends."""
    status = 1
    try:
        yield
        status = 0
    except typer.Exit as stop:
        status = stop.exit_code
        raise
    finally:
        timer = threading.Timer(EXIT_GRACE_S, _exit, (status,))
        timer.daemon = True
        timer.start()


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
