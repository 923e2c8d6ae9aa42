"""Cancels work whose client has disconnected."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from coserve_server.errors import DisconnectedError

T = TypeVar("T")

UNWATCHED_S = 0.02
"""Work that ends within this time is not watched: that would cost it a task."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work; cancel it if the client closes the connection first.

    Args:
        request: a request whose body has been read.

    Raises:
        DisconnectedError: the client closed the connection.
    """
    watch = _Watch(request)
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.disconnected:
            raise
        raise DisconnectedError("the client closed the connection") from None
    finally:
        watch.end()


class _Watch:
    """Cancels the current task when the client disconnects, so that the work needs no task of its own."""

    def __init__(self, request: Request) -> None:
        self.disconnected = False
        self._request = request
        self._task = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(UNWATCHED_S, self._begin)

    def end(self) -> None:
        """Stop watching."""
        self._task = None
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(_wait_for_disconnect(self._request))
        self._watching.add_done_callback(self._cancel)

    def _cancel(self, watching: "asyncio.Task[None]") -> None:
        if self._task is not None and not watching.cancelled() and watching.exception() is None:
            self.disconnected = True
            self._task.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
