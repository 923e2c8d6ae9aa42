"""Connections without requests, on a real socket."""

import asyncio

import uvicorn

from coserve_server.observability.metrics import Metrics
from coserve_server.settings import load_settings
from coserve_server.transport.connections import limited
from tests.server.transport.test_uvicorn import app

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Client:
    """A connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> bytes:
        self.writer.write(REQUEST)
        return await self.reader.readuntil(b"\r\n\r\n")


def test_the_idlest_connection_makes_room_for_a_new_one() -> None:
    async def go() -> None:
        settings = load_settings(repository="unused", max_connections=2)
        config = uvicorn.Config(
            app, http=limited(settings, Metrics()), lifespan="off", log_config=None, port=0
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]

        async def connect() -> Client:
            return Client(*await asyncio.open_connection("127.0.0.1", port))

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
        fresh = [await connect(), await connect()]
        assert await third.reader.read() == await first.reader.read() == b""
        refused = await connect()
        assert b" 503 " in await refused.reader.readline()
        for client in (first, second, third, *fresh, refused):
            client.writer.close()
            await client.writer.wait_closed()
        server.should_exit = True
        await serving

    asyncio.run(asyncio.wait_for(go(), 60))
