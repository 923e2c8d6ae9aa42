"""The targets of requests, on a real socket."""

import asyncio
import json

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from coserve_server.observability.metrics import Metrics
from coserve_server.settings import load_settings
from coserve_server.transport.connections import limited


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path and query."""
    await PlainTextResponse(f"{scope['path']}?{Request(scope).url.query}")(scope, receive, send)


def ask(request: bytes) -> tuple[int, str]:
    """Return the status and the body of the response."""

    async def go() -> bytes:
        protocol = limited(load_settings(repository="unused"), Metrics())
        config = uvicorn.Config(echo, http=protocol, lifespan="off", log_config=None, port=0)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.should_exit = True
        await serving
        return response

    head, _, body = asyncio.run(go()).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("http://a.b/v1/models?x=1", "/v1/models?x=1"),
        ("http://a.b", "/?"),
        ("https://a.b?x=1", "/?x=1"),
        ("*", "*?"),
        ("/a?b", "/a?b"),
    ],
)
def test_a_whole_url_is_a_path(target: str, read: str) -> None:
    assert ask(get(target)) == (200, read)


@pytest.mark.parametrize("target", ["http://", "http://a.b:99999/x", "http://[::1/"])
def test_a_target_that_is_no_url_is_named(target: str) -> None:
    status, body = ask(get(target))
    assert status == 400
    assert (
        json.loads(body)["detail"] == f"invalid HTTP/1.1: the target '{target}' is neither a path nor a URL"
    )


@pytest.mark.parametrize("target", ["a.b:443", "[::1]:443", "/v1/models"])
@pytest.mark.parametrize("upgrade", ["", "Connection: Upgrade\r\nUpgrade: websocket\r\n"])
def test_connect_is_refused_by_name(target: str, upgrade: str) -> None:
    status, body = ask(f"CONNECT {target} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n".encode())
    problem = json.loads(body)
    assert (status, problem["type"]) == (405, "/problems/method-not-allowed")
    assert "this server is not one" in problem["detail"]
