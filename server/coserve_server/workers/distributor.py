"""Accepts connections, and hands each to the worker with the fewest, of those that answer the parent."""

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Iterable

from coserve_server.transport.handed import hand_over
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
    """

    def __init__(self, listener: socket.socket, workers: Iterable[Worker]) -> None:
        """Take connections from a bound socket.

        Args:
            workers: the workers of any time; those that are ready take connections.
        """
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
        while self._take() is not None:
            pass
        self._listener.close()

    def take_back(self, connections: Iterable[socket.socket]) -> None:
        """Hand connections over once more, whose worker ended before they arrived."""
        self._returned.extend(connections)
        if self._stopped:
            while self._returned:
                self._returned.popleft().close()
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
            if self._take() is None:
                return

    def _take(self) -> Worker | None:
        """Accept a connection; return the worker that got it, or None if there is no connection."""
        ready = sorted((one for one in self._workers if one.state is State.READY), key=_load)
        if not ready:
            self._wait()
            return None
        try:
            connection = self._returned.popleft() if self._returned else self._listener.accept()[0]
        except OSError as error:
            if error.errno not in EXHAUSTED:
                return None
            logger.warning("a connection was not accepted: %s", error.strerror)
            self._wait()
            return None
        for worker in ready:
            try:
                hand_over(worker.inbox, connection)
            # It is too busy to take any more, or has ended.
            except OSError:
                continue
            worker.keep(connection)
            return worker
        connection.close()
        logger.warning("a connection was closed: no worker takes any more")
        return ready[0]

    def _wait(self) -> None:
        self._pause()
        if self._resuming is None and not self._stopped:
            self._resuming = asyncio.get_running_loop().call_later(PAUSE_S, self._resume)


def _load(worker: Worker) -> tuple[bool, int]:
    return worker.is_late, worker.connections
