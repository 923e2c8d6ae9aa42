"""How the processes of a run end: all of them, if one fails."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import lightning as L

from coserve_training.errors import RunError

LOST = re.compile("(closed|reset) by (remote )?peer|broken pipe", re.IGNORECASE)
"""What torch's errors say of a connection to a process that has ended. They have no class of their own."""
GRACE_S = 30.0
"""How long another process may take to end by itself, and to say why it does."""


@contextmanager
def ending_together(trainer: L.Trainer) -> Iterator[None]:
    """End the processes that this one has started if it fails: they would wait for it.

    Raises:
        RunError: if it fails because another process has ended.
    """
    try:
        yield
    except BaseException as error:
        has_lost = isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
        _end_started(trainer, GRACE_S if has_lost else 0.0)
        if has_lost:
            raise RunError(
                "another process of this training has ended; if it gave no reason, it was killed, usually "
                "for want of memory"
            ) from error
        raise


def _end_started(trainer: L.Trainer, grace_s: float) -> None:
    procs = getattr(trainer.strategy.launcher, "procs", [])
    started: list[subprocess.Popen[bytes]] = procs.copy()
    # Once one of these has ended, Lightning would kill this process too, before it has said why it fails.
    procs.clear()
    deadline = time.monotonic() + grace_s
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()
