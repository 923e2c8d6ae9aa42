"""Stops work whose client has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""The status nginx logs for a client that left; nobody receives it."""

UNWATCHED_S = 0.02
"""Work that is done by then is not worth watching for."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work; None if the client closes the connection before it is done, and the work is cancelled.

    Args:
        request: one whose body has been read.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working,), timeout=UNWATCHED_S)
        if not working.done():
            leaving = asyncio.ensure_future(_disconnect(request))
            try:
                await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
        return working.result() if working.done() else None
    finally:
        working.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
