"""Calls that may hang: on threads that keep neither the event loop nor the process from ending."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def call_on_thread(function: Callable[[], T], name: str) -> "asyncio.Future[T]":
    """Call the function on a daemon thread of its own.

    Args:
        name: the thread's.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
            # Nobody may wait any more.
            future.exception()
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result = None
        error = None
        try:
            result = function()
        except BaseException as caught:
            error = caught
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
