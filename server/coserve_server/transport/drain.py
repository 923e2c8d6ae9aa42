"""Graceful shutdown: report not ready, close the socket, finish requests, end."""

import asyncio
import functools
import math
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

import uvicorn

from coserve_server.settings import Settings
from coserve_server.transport.connections import Connection

CLOSE = (b"connection", b"close")
ABORT_S = 1
"""Time for requests to end by themselves once their connections are gone."""
SHUTDOWN_MARGIN_S = 2


def grace_s(settings: Settings) -> int:
    """Return the seconds in which requests in progress end."""
    return math.ceil(settings.deadline_ms / 1000) + SHUTDOWN_MARGIN_S


class DrainingServer(uvicorn.Server):
    """Keeps answering for a while after SIGTERM, so that load balancers notice before anyone is refused.

    Meanwhile connections are closed after their next answer. Then it closes the socket and finishes the
    requests in progress. A second signal ends the process.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_delay_s: float,
        handshake_s: float,
        handle_signals: bool,
        started: Callable[[], None],
        draining: Callable[[], None],
        closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Make a server.

        Args:
            drain_delay_s: seconds from SIGTERM until the socket is closed; after SIGINT there are none.
            handshake_s: seconds for a new connection's TLS handshake.
            handle_signals: whether to handle signals, if this is the main thread.
            started: called once connections are accepted and signals handled.
            draining: called when the server begins to stop.
            closing: called when the socket is closed; the server ends when that is done, too.
        """
        super().__init__(config)
        self._drain_delay_s = drain_delay_s
        self._handshake_s = handshake_s
        self._handle_signals = handle_signals
        self._started = started
        self._draining = draining
        self._closing = closing
        self._closes_at: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving, if asked to."""
        with super().capture_signals() if self._handle_signals else nullcontext():
            yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped; if cancelled, or if the start fails, close everything at once."""
        try:
            await super().serve(sockets)
        finally:
            await self._abort()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections."""
        loop = asyncio.get_running_loop()
        if self.config.ssl_context_factory is not None:
            # uvicorn has no setting for this; the loop's default is 60 s.
            create_server = loop.create_server
            loop.create_server = functools.partial(  # type: ignore[method-assign]
                create_server, ssl_handshake_timeout=self._handshake_s
            )
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket, and finish what is in progress here and elsewhere."""
        ended: list[Awaitable[None]] = [super().shutdown(sockets)]
        if self._closing is not None:
            ended.append(self._closing())
        await asyncio.gather(*ended)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; called by a signal."""
        if self._closes_at is not None:
            # Not by the signal's default action, which a container's first process does not have.
            os._exit(128 + sig)
        self.stop(self._drain_delay_s if sig == signal.SIGTERM else 0)

    def stop(self, delay_s: float = 0) -> None:
        """Begin to stop; close the socket after `delay_s` seconds."""
        self._closes_at = time.monotonic() + delay_s
        self._close_connections()
        self._draining()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close the socket; called ten times a second."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        ends = await super().on_tick(counter)
        if self._closes_at is not None:
            # uvicorn rebuilds these headers every second.
            self._close_connections()
        return ends

    async def _abort(self) -> None:
        """Close what is still open: nothing, after an orderly end."""
        # uvicorn does this in `shutdown`, which is not reached then. uvloop listens on a copy of the socket.
        for server in getattr(self, "servers", ()):
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks := set(self.server_state.tasks):
            _, pending = await asyncio.wait(tasks, timeout=ABORT_S)
            for task in pending:
                task.cancel()

    def _close_connections(self) -> None:
        """Close connections after their next answer, which announces it."""
        headers = self.server_state.default_headers
        if CLOSE not in headers:
            self.server_state.default_headers = [*headers, CLOSE]
            for connection in self.server_state.connections:
                # Answers in progress have the headers from before.
                if isinstance(connection, Connection):
                    connection.close_after_answer()
