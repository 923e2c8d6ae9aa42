"""The internals of uvicorn that `coserve_server.transport` relies on."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from coserve_server.observability.metrics import Metrics
from coserve_server.settings import load_settings
from coserve_server.transport.connections import Connection, limited
from coserve_server.transport.drain import DrainingServer

CONNECTION_METHODS = [
    "connection_made",
    "data_received",
    "on_message_begin",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "send_400_response",
    "_unsupported_upgrade_warning",
    "connection_lost",
]
CONNECTION = {
    "loop": asyncio.AbstractEventLoop,
    "transport": asyncio.Transport,
    "connections": set,
    "parser": httptools.HttpRequestParser,
    "url": bytes,
    "headers": list,
    "cycle": RequestResponseCycle,
    "flow": FlowControl,
    "pipeline": deque,
    "timeout_keep_alive_task": asyncio.TimerHandle,
}
CYCLE = {
    "message_event": asyncio.Event,
    "more_body": bool,
    "keep_alive": bool,
    "disconnected": bool,
    "waiting_for_100_continue": bool,
    "response_started": bool,
    "response_complete": bool,
}
SERVER = {"config": uvicorn.Config, "server_state": ServerState, "servers": list, "should_exit": bool}
STATE = {"connections": set, "default_headers": list, "tasks": set}

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


class Pipe(asyncio.Transport):
    """A connection to nobody."""

    def __init__(self) -> None:
        self.socket = socket.socket()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default

    def is_closing(self) -> bool:
        return self.socket.fileno() < 0

    def write(self, data: Any) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.socket.close()


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def answered() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def config(**more: Any) -> uvicorn.Config:
    return uvicorn.Config(app, lifespan="off", log_config=None, ws="none", **more)


@contextlib.contextmanager
def connected(kind: type[HttpToolsProtocol]) -> Iterator[HttpToolsProtocol]:
    connection = kind(config=config(), server_state=ServerState(), app_state={})
    pipe = Pipe()
    connection.connection_made(pipe)
    yield connection
    connection.connection_lost(None)
    pipe.close()


def assert_fits(faults: list[str]) -> None:
    """Fail with one message that names everything that is missing."""
    advice = "adapt coserve_server.transport, or lower the bound on uvicorn in pyproject.toml"
    assert not faults, f"uvicorn {uvicorn.__version__}: {', '.join(faults)}; {advice}"


def missing(owner: object, kinds: dict[str, type]) -> list[str]:
    return [
        f"{type(owner).__name__} has no {kind.__name__} {name}"
        for name, kind in kinds.items()
        if not isinstance(getattr(owner, name, None), kind)
    ]


def test_uvicorn_has_what_connections_read() -> None:
    async def look() -> list[str]:
        with connected(HttpToolsProtocol) as connection:
            connection.data_received(POST)
            faults = missing(connection.cycle, CYCLE)
            connection.data_received(POST + POST)
            waiting = [cycle for cycle, _ in getattr(connection, "pipeline", ())]
            if len(waiting) != 2 or waiting[0] is not connection.cycle:
                faults.append("HttpToolsProtocol.pipeline does not have the last request first")
            await answered()
            return faults + missing(connection, CONNECTION)

    assert_fits(asyncio.run(look()))


def test_uvicorn_calls_what_connections_override() -> None:
    calls: Counter[str] = Counter()

    def recording(name: str) -> Any:
        def method(self: Connection, *arguments: Any) -> Any:
            calls[name] += 1
            return getattr(Connection, name)(self, *arguments)

        return method

    parent = limited(load_settings(repository="unused", max_connections=1), Metrics())
    kind = type("Recording", (parent,), {name: recording(name) for name in CONNECTION_METHODS})

    async def ask() -> None:
        with connected(kind) as connection:
            for data in POST, UPGRADE, b"nonsense\r\n\r\n":
                connection.data_received(data)
                await answered()

    asyncio.run(ask())
    assert_fits([f"HttpToolsProtocol does not call {name}" for name in CONNECTION_METHODS if not calls[name]])


def test_uvicorn_starts_and_stops_as_the_draining_server_expects() -> None:
    """Uvicorn must start listening through the loop's `create_server`, and ask `on_tick` when to stop."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening: dict[str, Any] = {}
    events: list[str] = []

    def start() -> None:
        events.append("started")
        signal.raise_signal(signal.SIGINT)

    async def serve() -> list[str]:
        loop = asyncio.get_running_loop()
        create_server = loop.create_server

        async def create(factory: Any, **arguments: Any) -> asyncio.AbstractServer:
            listening.update(arguments)
            return await create_server(factory, **arguments)

        loop.create_server = create  # type: ignore[method-assign, assignment]
        settings = config(ssl_context_factory=lambda *_: context)
        server = DrainingServer(
            settings,
            drain_delay_s=0,
            handshake_s=3,
            handle_signals=True,
            started=start,
            draining=lambda: events.append("draining"),
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await asyncio.wait_for(server.serve(sockets=[listener]), 60)
        return missing(server, SERVER) + missing(server.server_state, STATE)

    faults = asyncio.run(serve())
    if (listening.get("ssl"), listening.get("ssl_handshake_timeout")) != (context, 3):
        faults.append("Server.startup does not listen with TLS through loop.create_server")
    if events != ["started", "draining"]:
        faults.append(f"Server calls {events} of startup and handle_exit")
    assert_fits(faults)
