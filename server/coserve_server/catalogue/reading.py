"""Read a file system that may hang, such as a network mount, and say so instead of hanging."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from coserve_server.errors import RepositoryError
from coserve_server.machine.threads import call_on_thread

T = TypeVar("T")

PATIENCE_S = 10.0
"""Time after which a file system counts as silent."""

logger = logging.getLogger(__name__)


class SilentError(RepositoryError):
    """The repository's file system does not answer."""


async def read_patiently(folder: Path, function: Callable[[], T]) -> T:
    """Call a function that reads a folder, and wait for it; log a long wait and its end."""
    began = time.monotonic()
    reading = call_on_thread(function, "repository")
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
    reading = call_on_thread(function, "repository")
    if not (await asyncio.wait({reading}, timeout=PATIENCE_S))[0]:
        raise SilentError(f"{folder} has not answered for {PATIENCE_S:g} s; is its file system reachable?")
    return reading.result()
