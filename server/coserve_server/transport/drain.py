"""Graceful shutdown: report not ready, stop accepting connections, finish requests, exit."""

import asyncio
import functools
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from coserve_server.transport.connections import Connection

CLOSE = (b"connection", b"close")


class DrainingServer(uvicorn.Server):
    """A server that still responds for a while after the first signal, so that load balancers notice in time.

    In this time it closes each connection after its next response. Then it closes the socket and finishes the
    requests in progress. A second signal ends the process at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        delay_s: float,
        handshake_s: float,
        started: Callable[[], None],
        draining: Callable[[], None],
    ) -> None:
        """Make a server.

        Args:
            delay_s: time from SIGTERM until the socket is closed; SIGINT closes it at once.
            handshake_s: timeout of a new connection's TLS handshake.
            started: called once connections are accepted and signals are handled.
            draining: called at the first signal.
        """
        super().__init__(config)
        self._handshake_s = handshake_s
        self._delay_s = delay_s
        self._started = started
        self._draining = draining
        self._closes_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        loop = asyncio.get_running_loop()
        if self.config.ssl_context_factory is not None:
            # uvicorn has no setting for this timeout; the loop's default is 60 s.
            create_server = loop.create_server
            loop.create_server = functools.partial(  # type: ignore[method-assign]
                create_server, ssl_handshake_timeout=self._handshake_s
            )
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to stop; called by a signal."""
        if self._closes_at is not None:
            # The signal's default action does not end a container's first process.
            os._exit(128 + sig)
        self._closes_at = time.monotonic() + (self._delay_s if sig == signal.SIGTERM else 0)
        self._close_connections()
        self._draining()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close the socket; called ten times a second."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        ends = await super().on_tick(counter)
        if self._closes_at is not None:
            # Every second uvicorn replaces the default headers.
            self._close_connections()
        return ends

    def _close_connections(self) -> None:
        """Close each connection after its next response, which says so."""
        headers = self.server_state.default_headers
        if CLOSE not in headers:
            self.server_state.default_headers = [*headers, CLOSE]
            for connection in self.server_state.connections:
                # Requests in progress still have the old headers.
                if isinstance(connection, Connection):
                    connection.close_after_answer()
