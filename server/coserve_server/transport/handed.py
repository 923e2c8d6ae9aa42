"""Serves connections that another process has accepted."""

import asyncio
import itertools
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from coserve_server.transport.connections import Connection
from coserve_server.transport.drain import DrainingServer

TAKEN = b"+"
MISSED = b"-"
"""Answers to a connection that was sent; one is missed if the process may have no more open files."""


def hand_over(channel: socket.socket, connection: socket.socket) -> None:
    """Send a connection to the process at the other end of a channel (SCM_RIGHTS, unix(7)).

    The other process answers with `TAKEN` before it reads from the connection, or with `MISSED`, in the order
    in which they were sent. Until then, a connection is lost with the process unless the sender keeps it.

    Raises:
        BlockingIOError: the channel is full.
        OSError: the process has ended.
    """
    socket.send_fds(channel, [b"+"], [connection.fileno()])


class HandedServer(DrainingServer):
    """Serves the connections that arrive over a channel; see `hand_over`."""

    def __init__(
        self,
        config: uvicorn.Config,
        channel: socket.socket,
        report: Callable[[int, int], None],
        *,
        handshake_s: float,
        **options: Any,
    ) -> None:
        """Make a server.

        Args:
            channel: where connections arrive.
            report: called with the number of open connections, and of those received so far, up to ten times
                a second when one of them has changed.
            handshake_s: seconds for a new connection's TLS handshake.
            options: others of `DrainingServer`.
        """
        super().__init__(config, handshake_s=handshake_s, **options)
        self._channel = channel
        self._report = report
        self._timeout_s = handshake_s
        self._received = 0
        self._reported = (0, 0)
        self._opening: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start taking connections over."""
        self._channel.setblocking(False)
        await super().startup([])
        asyncio.get_running_loop().add_reader(self._channel, self._take)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take over what was handed before, and finish what is in progress."""
        self._take()
        asyncio.get_running_loop().remove_reader(self._channel)
        if self._opening:
            await asyncio.wait(self._opening, timeout=self._timeout_s)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Report the numbers of connections."""
        now = self.count()
        if now != self._reported:
            self._reported = now
            self._report(*now)
        return await super().on_tick(counter)

    def count(self) -> tuple[int, int]:
        """Return the numbers of open connections, and of those received so far."""
        return len(self.server_state.connections) + len(self._opening), self._received

    def shed(self, count: int) -> None:
        """Let connections end with their next response, so that their clients come to other processes."""
        known = (one for one in self.server_state.connections if isinstance(one, Connection))
        for connection in itertools.islice((one for one in known if not one.is_expired), count):
            connection.expire()

    def _take(self) -> None:
        """Take over all connections that have arrived."""
        while True:
            try:
                # One at a time, as Linux gives them anyway: of several, none would say which one is missed.
                data, handles, _, _ = socket.recv_fds(self._channel, 1, 1)
            except BlockingIOError:
                return
            if not data:
                # The other process has ended.
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            self._received += 1
            with suppress(OSError):
                self._channel.send(TAKEN if handles else MISSED)
            for handle in handles:
                task = asyncio.ensure_future(self._open(socket.socket(fileno=handle)))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        """Begin to serve a connection, after its handshake if there is TLS."""
        connection.setblocking(False)
        tls = self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._create_protocol,
                connection,
                ssl=tls,
                ssl_handshake_timeout=self._timeout_s if tls else None,
            )
        # The client is gone, or its handshake failed.
        except (OSError, asyncio.TimeoutError):
            connection.close()

    def _create_protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol
