"""Handles requests to stop: Ctrl-C and SIGTERM.

Signals are only noted: an exception raised by a handler could be lost in an object's finaliser. Long-running
code checks for the note, or is cancelled.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.1
"""Time between two checks of a wait for a request to stop."""

_stopped = threading.Event()
_cancel: list[Callable[[], object]] = []


@contextmanager
def noting_signals() -> Iterator[None]:
    """Note SIGINT and SIGTERM during the block; then restore their handlers."""

    def note(*_: object) -> None:
        if not _stopped.is_set():
            _stopped.set()
            for cancel in _cancel:
                cancel()

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stopped.clear()


def is_stopped() -> bool:
    """Return whether a signal was noted."""
    return _stopped.is_set()


def check_stopped() -> None:
    """Raise KeyboardInterrupt if a signal was noted."""
    if _stopped.is_set():
        raise KeyboardInterrupt


def run_until_stopped(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; a signal cancels it.

    Raises:
        KeyboardInterrupt: a signal was noted.
    """

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        _cancel.append(cancel)
        try:
            check_stopped()
            return await main
        finally:
            _cancel.remove(cancel)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        check_stopped()
        raise
    finally:
        # It may not have begun.
        main.close()


@contextmanager
def blocking_signals() -> Iterator[None]:
    """Block signals while a process starts, which inherits that: Ctrl-C reaches a terminal's processes."""
    # Starting it unblocks signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
