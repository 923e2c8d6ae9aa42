"""Accepts connections, and hands each to the worker with the fewest, of those that answer the parent."""

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from coserve_server.transport.handed import hand_over
from coserve_server.transport.refusals import write_problem
from coserve_server.workers.worker import State, Worker

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the system keeps while nobody takes them, as in a single process."""
MAX_AT_ONCE = 64
PAUSE_S = 0.1
"""Time until the next attempt if there is no worker, or no file descriptor."""
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that the next attempt would meet, too; others are the client's network's."""


class Distributor:
    """Divides connections among workers.

    Workers that waited for connections on one socket would not get equal parts: the system wakes the one
    that waited last, which takes all that are there. With sockets of their own (SO_REUSEPORT) few connections
    are divided unevenly, and those in the queue of a worker that ends are lost.

    Attributes:
        refused: number of connections that no worker took.
    """

    def __init__(self, listener: socket.socket, workers: Iterable[Worker], *, tls: bool) -> None:
        """Take connections from a bound socket.

        Args:
            workers: the workers of any time; those that are ready take connections.
            tls: whether clients speak TLS, so that those that are refused can only be disconnected.
        """
        self.refused = 0
        self._tls = tls
        self._listener = listener
        self._workers = workers
        self._resuming: asyncio.TimerHandle | None = None
        self._returned: deque[socket.socket] = deque()
        self._stopped = False

    def start(self) -> None:
        """Accept connections."""
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._resume()

    def stop(self) -> None:
        """Hand over what has arrived, and refuse all later connections."""
        self._stopped = True
        self._pause()
        if self._resuming is not None:
            self._resuming.cancel()
        while self._take():
            pass
        self._listener.close()

    def take_back(self, connections: Iterable[socket.socket]) -> None:
        """Hand connections over once more, which their worker could not take, or ended before it did."""
        self._returned.extend(connections)
        if self._stopped:
            while self._returned:
                self._refuse(self._returned.popleft())
        elif self._returned:
            self._take_some()

    def _resume(self) -> None:
        self._resuming = None
        asyncio.get_running_loop().add_reader(self._listener, self._take_some)
        if self._returned:
            self._take_some()

    def _pause(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)

    def _take_some(self) -> None:
        """Hand over what has arrived, but let other work go on."""
        for _ in range(MAX_AT_ONCE):
            if not self._take():
                return
        # No event tells of these.
        if self._returned:
            asyncio.get_running_loop().call_soon(self._take_some)

    def _take(self) -> bool:
        """Accept a connection, and hand it over; return whether there was one."""
        ready = sorted((one for one in self._workers if one.state is State.READY), key=_load)
        if not ready:
            self._wait()
            return False
        try:
            connection = self._returned.popleft() if self._returned else self._listener.accept()[0]
        except OSError as error:
            if error.errno not in EXHAUSTED:
                return False
            logger.warning("a connection was not accepted: %s", error.strerror)
            self._wait()
            return False
        for worker in ready:
            if worker.is_full:
                continue
            try:
                hand_over(worker.inbox, connection)
            # It is too busy to take any more, or has ended.
            except OSError:
                continue
            worker.keep(connection)
            return True
        self._refuse(connection)
        return True

    def _refuse(self, connection: socket.socket) -> None:
        """Say that no worker takes a connection, and close it."""
        self.refused += 1
        logger.warning("a connection was refused: no worker takes any more")
        # The client may be gone. It must have the answer before it learns that its request was not read.
        with connection, suppress(OSError):
            if not self._tls:
                answer = write_problem(503, "overloaded", "no worker takes any more connections")
                connection.send(answer, socket.MSG_DONTWAIT)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536, socket.MSG_DONTWAIT)

    def _wait(self) -> None:
        self._pause()
        if self._resuming is None and not self._stopped:
            self._resuming = asyncio.get_running_loop().call_later(PAUSE_S, self._resume)


def _load(worker: Worker) -> tuple[bool, int]:
    return worker.is_late, worker.connections
