"""Connections that are handed to workers, and again if they have not arrived."""

import asyncio
import socket
from collections import deque
from types import SimpleNamespace
from typing import Any

from coserve_server.workers.distributor import Distributor
from coserve_server.workers.worker import State, Worker


def fake() -> tuple[Any, socket.socket]:
    """Return a worker that is ready, and the other end of its inbox."""
    inbox, end = socket.socketpair()
    inbox.setblocking(False)
    worker = Worker.__new__(Worker)
    worker._launched = SimpleNamespace(connections=inbox)  # type: ignore[assignment]
    worker._kept = deque()
    worker._handed = worker._open = worker._received = 0
    worker.is_late = False
    worker.state = State.READY
    return worker, end


def take(end: socket.socket) -> socket.socket:
    """Take a connection over, as a worker does, but do not say so."""
    _, (handle,), _, _ = socket.recv_fds(end, 1, 1)
    return socket.socket(fileno=handle)


def test_what_has_not_arrived_goes_to_another_worker_and_nothing_else_does() -> None:
    async def run() -> None:
        first, end = fake()
        second, other = fake()
        second.state = State.STARTING
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            distributor = Distributor(listener, [first, second])
            distributor.start()
            clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
            while first.connections < 3:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
            arrived = take(end)
            end.send(b"+")
            for client, text in zip(clients, (b"a", b"b", b"c"), strict=True):
                client.sendall(text)
            assert arrived.recv(1) == b"a"
            end.close()
            first.state = State.LEAVING
            # No worker is ready yet: the connections wait.
            distributor.take_back(first.reclaim())
            second.state = State.READY
            while second.connections < 2:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
            for text in (b"b", b"c"):
                with take(other) as connection:
                    assert connection.recv(1) == text
            distributor.stop()
            distributor.take_back(second.reclaim())
            arrived.close()
            for client in clients:
                # Nobody else holds a copy.
                assert client.recv(1) == b""
                client.close()
            other.close()
            for worker in (first, second):
                worker.inbox.close()

    asyncio.run(asyncio.wait_for(run(), 30))
