"""Connections that another process has accepted; here, this process hands them to itself."""

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trustme
import uvicorn
import uvloop

from coserve_server.observability.metrics import Metrics
from coserve_server.settings import load_settings
from coserve_server.transport.connections import limited
from coserve_server.transport.handed import MISSED, TAKEN, HandedServer, hand_over

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
AUTHORITY = trustme.CA()
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@dataclass
class Served:
    server: HandedServer
    channel: socket.socket
    listener: socket.socket
    reports: list[tuple[int, int]]

    async def connect(self, tls: ssl.SSLContext | None = None) -> Client:
        """Connect a client, and hand its connection over."""
        host = "127.0.0.1" if tls else None
        connecting = asyncio.ensure_future(
            asyncio.open_connection(*self.listener.getsockname(), ssl=tls, server_hostname=host)
        )
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        with accepted:
            hand_over(self.channel, accepted)
        return await connecting


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    channel, inbox = socket.socketpair()
    reports: list[tuple[int, int]] = []
    config = uvicorn.Config(
        application,
        http=limited(load_settings(repository="unused"), Metrics()),
        lifespan="off",
        log_config=None,
        ssl_context_factory=(lambda *_: tls) if tls else None,
    )
    server = HandedServer(
        config,
        inbox,
        lambda opened, received: reports.append((opened, received)),
        handshake_s=30,
        drain_delay_s=0,
        handle_signals=False,
        started=lambda: None,
        draining=lambda: None,
    )
    with channel, inbox, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        task = asyncio.ensure_future(server.serve())
        yield Served(server, channel, listener, reports)
        server.stop()
        await asyncio.wait_for(task, 60)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition has not become true")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(REQUEST)
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(test())


def test_answers_are_sent_without_delay_and_connections_are_reported() -> None:
    async def test() -> None:
        async with serving() as served:
            clients = [await served.connect() for _ in range(2)]
            for client in clients:
                assert (await ask(*client)).startswith(b"HTTP/1.1 200 ")
            for connection in served.server.server_state.connections:
                own = connection.transport.get_extra_info("socket")
                assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "Nagle's algorithm is off"
            clients[0][1].close()
            await until(lambda: served.reports[-1:] == [(1, 2)])
            clients[1][1].close()

    run(test)


def test_a_process_without_file_descriptors_says_so() -> None:
    async def test() -> None:
        async with serving() as served:
            with socket.create_connection(served.listener.getsockname()):
                accepted, _ = await asyncio.get_running_loop().sock_accept(served.listener)
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                with accepted:
                    hand_over(served.channel, accepted)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (accepted.fileno(), limits[1]))
                    try:
                        await until(lambda: served.server.count() == (0, 1))
                    finally:
                        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert served.channel.recv(10) == MISSED
            client = await served.connect()
            assert (await ask(*client)).startswith(b"HTTP/1.1 200 ")
            assert served.channel.recv(10) == TAKEN
            client[1].close()

    run(test)


def test_connections_may_be_encrypted() -> None:
    async def test() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(tls)
        client = ssl.create_default_context()
        AUTHORITY.configure_trust(client)
        async with serving(tls) as served:
            reader, writer = await served.connect(client)
            assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200 ")
            writer.close()
            stranger = asyncio.ensure_future(served.connect(ssl.create_default_context()))
            with pytest.raises(ssl.SSLCertVerificationError):
                await stranger
            await until(lambda: served.server.count() == (0, 2))

    run(test)


def test_shed_connections_end_with_an_answer_that_says_so() -> None:
    async def test() -> None:
        async with serving() as served:
            clients = [await served.connect() for _ in range(3)]
            for client in clients:
                assert b"connection: close" not in await ask(*client)
            served.server.shed(1)
            served.server.shed(1)
            answers = [await ask(*client) for client in clients]
            assert sum(b"connection: close" in answer.lower() for answer in answers) == 2
            for _, writer in clients:
                writer.close()

    run(test)


def test_connections_handed_over_before_the_end_are_taken() -> None:
    async def test() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200 ")
            other = await served.connect()
            served.server.stop()
        assert served.server.count() == (0, 2)
        for _, open_writer in ((reader, writer), other):
            open_writer.close()

    run(test)
