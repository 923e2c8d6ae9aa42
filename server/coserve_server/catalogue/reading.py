"""Read a file system that may hang, such as a network mount, and say so instead of hanging."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from coserve_server.errors import RepositoryError

T = TypeVar("T")

PATIENCE_S = 10.0
"""Time after which a file system counts as silent."""

logger = logging.getLogger(__name__)


class SilentError(RepositoryError):
    """The repository's file system does not answer."""


async def read_patiently(folder: Path, function: Callable[[], T]) -> T:
    """Call a function that reads a folder, and wait for it; log a long wait and its end."""
    began = time.monotonic()
    reading = _call(function)
    waited = 0.0
    while not (await asyncio.wait({reading}, timeout=max(waited, PATIENCE_S)))[0]:
        waited = time.monotonic() - began
        logger.warning(
            "%s has not answered for %.0f s; its changes are not served until it does", folder, waited
        )
    if waited:
        logger.warning("%s answers again, after %.0f s", folder, time.monotonic() - began)
    return reading.result()


async def read_soon(folder: Path, function: Callable[[], T]) -> T:
    """Call a function that reads a folder, and wait for it for `PATIENCE_S`.

    Raises:
        SilentError: the file system does not answer.
    """
    reading = _call(function)
    if not (await asyncio.wait({reading}, timeout=PATIENCE_S))[0]:
        raise SilentError(f"{folder} has not answered for {PATIENCE_S:g} s; is its file system reachable?")
    return reading.result()


def _call(function: Callable[[], T]) -> "asyncio.Future[T]":
    """Call the function in a thread that keeps neither the event loop nor the process from ending."""
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

    threading.Thread(target=run, name="repository", daemon=True).start()
    return future
