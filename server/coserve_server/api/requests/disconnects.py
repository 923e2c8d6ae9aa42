"""Stops work whose client has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from coserve_server.errors import DisconnectedError

T = TypeVar("T")

UNWATCHED_S = 0.02
"""Work that is done by then is not worth watching for."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; where the client closes the connection before it is done it is cancelled.

    Args:
        request: one whose body has been read.

    Raises:
        DisconnectedError: that is so.
    """
    watch = _Watch(request)
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.left:
            raise
        raise DisconnectedError("the client closed the connection") from None
    finally:
        watch.end()


class _Watch:
    """Cancels the task that made it when the client leaves. The work needs no task of its own then."""

    def __init__(self, request: Request) -> None:
        self.left = False
        self._request = request
        self._task = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(UNWATCHED_S, self._begin)

    def end(self) -> None:
        """Watch no more."""
        self._task = None
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(_disconnect(self._request))
        self._watching.add_done_callback(self._leave)

    def _leave(self, watching: "asyncio.Task[None]") -> None:
        if self._task is not None and not watching.cancelled() and watching.exception() is None:
            self.left = True
            self._task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
