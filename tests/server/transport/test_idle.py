"""How many connections there may be, and for how long, on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from coserve_server.observability.metrics import Metrics
from coserve_server.settings import load_settings
from coserve_server.transport import connections
from coserve_server.transport.connections import limited
from tests.server.transport.test_uvicorn import app


class Client:
    """A connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str = "/") -> bytes:
        """Send a request, and return the head of its response."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return await self.reader.readuntil(b"\r\n\r\n")


Connect = Callable[[], Awaitable[Client]]


@asynccontextmanager
async def serving(certificate: str | None = None, **settings: Any) -> AsyncIterator[Connect]:
    """Serve, and yield a function that connects; close its connections at the end.

    With a certificate, in a PEM file with its key, the server speaks TLS, but the connections do not.
    """
    http = limited(load_settings(repository="unused", **settings), Metrics())
    server = uvicorn.Server(
        uvicorn.Config(app, http=http, lifespan="off", log_config=None, port=0, ssl_certfile=certificate)
    )
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.close()
        with suppress(ConnectionError):
            await client.writer.wait_closed()
    server.should_exit = True
    await task


def run(test: Callable[[Connect], Awaitable[None]], **settings: Any) -> None:
    async def go() -> None:
        async with serving(**settings) as connect:
            await test(connect)

    asyncio.run(asyncio.wait_for(go(), 60))


def test_the_idlest_connection_makes_room_for_a_new_one() -> None:
    async def test(connect: Connect) -> None:
        first = await connect()
        second = await connect()
        assert b"200" in await second.ask()
        assert b"200" in await first.ask()
        third = await connect()
        assert b"200" in await third.ask()
        await second.reader.read()
        assert second.reader.at_eof(), "it has been idle for longest"
        assert b"200" in await first.ask()
        # A connection that waits for its first request is not idle.
        await connect()
        await connect()
        assert await third.reader.read() == await first.reader.read() == b""
        assert b" 503 " in await (await connect()).ask()

    run(test, max_connections=2)


def test_health_is_reported_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "EXTRA_CONNECTIONS", 2)

    async def test(connect: Connect) -> None:
        await connect()
        for path in ("/healthz", "/readyz?verbose", "/v2/health/live", "/v2/health/ready", "/images/healthz"):
            probe = await connect()
            answer = await probe.ask(path)
            assert b" 200 " in answer
            assert b"connection: close" in answer
            assert await probe.reader.read() == b"", "it makes room for the next one"
        for path in ("/", "/v1/models", "/healthz/"):
            assert b" 503 " in await (await connect()).ask(path)
        held = [await connect(), await connect()]
        refused = await connect()
        assert b" 503 " in await refused.reader.readline(), "without its head"
        assert b" 200 " in await held[0].ask("/healthz")

    run(test, max_connections=1, root_path="/images")


@pytest.mark.parametrize("age_ms", [0, 1e-3, 3_600_000])
def test_a_connection_ends_with_the_first_response_beyond_its_age(age_ms: float) -> None:
    async def test(connect: Connect) -> None:
        client = await connect()
        # The age ends no connection by itself, since a request may be on its way.
        await asyncio.sleep(0.05)
        last = age_ms == 1e-3
        for _ in range(1 if last else 3):
            answer = await client.ask()
            assert b" 200 " in answer
            assert (b"connection: close" in answer) is last
        if last:
            assert await client.reader.read() == b""

    run(test, max_connection_age_ms=age_ms)


def test_connections_of_one_moment_do_not_end_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = iter([1.0, 1e-9])

    def uniform(low: float, high: float) -> float:
        assert (low, high) == (0.9, 1.1)
        return next(factors)

    monkeypatch.setattr(connections.random, "uniform", uniform)

    async def test(connect: Connect) -> None:
        assert b"connection: close" not in await (await connect()).ask()
        assert b"connection: close" in await (await connect()).ask()

    run(test, max_connection_age_ms=3_600_000)
