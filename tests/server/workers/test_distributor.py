"""Connections that are handed to workers, and again if they have not arrived."""

import asyncio
import socket
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from coserve_server.transport.handed import MISSED
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
    worker._full_until = 0.0
    worker.number = 1
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
            distributor = Distributor(listener, [first, second], tls=False)
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
            refusals = [client.recv(4096) for client in clients]
            # Nobody else holds a copy.
            assert [text[:12] for text in refusals] == [b"", b"HTTP/1.1 503", b"HTTP/1.1 503"]
            for client in clients:
                client.close()
            other.close()
            for worker in (first, second):
                worker.inbox.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_what_a_worker_cannot_take_goes_to_another_or_is_refused_with_a_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        workers, ends = zip(*[fake() for _ in range(2)], strict=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            distributor = Distributor(listener, workers, tls=False)
            distributor.start()
            for worker in workers:
                worker._returned = distributor.take_back
            client = socket.create_connection(listener.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            for worker, end in zip(workers, ends, strict=True):
                while not worker._kept:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.01)
                take(end).close()
                end.send(MISSED)
                worker.reclaim()
            assert distributor.refused == 1
            assert client.recv(4096).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert client.recv(1) == b""
            client.close()
            distributor.stop()
        for worker, end in zip(workers, ends, strict=True):
            worker.inbox.close()
            end.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    full = "worker 1 may have no more open files (ulimit -n)"
    assert caplog.messages == [full, full, "a connection was refused: no worker takes any more"]
