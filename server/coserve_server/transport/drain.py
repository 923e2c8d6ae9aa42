"""How the server stops: ready no more, then deaf, then finished, then gone."""

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
    """Answers for a while after the first signal, so that load balancers notice before anyone is refused.

    Meanwhile connections are closed after their next answer. Then it closes the socket and finishes the
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
            delay_s: from SIGTERM until the socket is closed; after SIGINT it is closed at once.
            handshake_s: for a new connection's TLS handshake.
            started: called once connections are accepted and signals heeded.
            draining: called at the first signal.
        """
        super().__init__(config)
        self._handshake_s = handshake_s
        self._delay_s, self._started, self._draining = delay_s, started, draining
        self._closes: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        loop = asyncio.get_running_loop()
        if self.config.ssl_context_factory is not None:
            # uvicorn leaves a handshake the loop's own 60 s.
            create_server = loop.create_server
            loop.create_server = functools.partial(  # type: ignore[method-assign]
                create_server, ssl_handshake_timeout=self._handshake_s
            )
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; called by a signal."""
        if self._closes is not None:
            # Not by the default action, which the first process of a container does not have.
            os._exit(128 + sig)
        self._closes = time.monotonic() + (self._delay_s if sig == signal.SIGTERM else 0)
        self._close_connections()
        self._draining()

    async def on_tick(self, counter: int) -> bool:
        """Whether to close the socket; asked ten times a second."""
        if self._closes is not None and time.monotonic() >= self._closes:
            self.should_exit = True
        ends = await super().on_tick(counter)
        if self._closes is not None:
            # Once a second uvicorn makes these headers anew.
            self._close_connections()
        return ends

    def _close_connections(self) -> None:
        """After their next answer, which says so."""
        headers = self.server_state.default_headers
        if CLOSE not in headers:
            self.server_state.default_headers = [*headers, CLOSE]
            for connection in self.server_state.connections:
                # What is in progress has the headers from before.
                if isinstance(connection, Connection):
                    connection.close_after_answer()
