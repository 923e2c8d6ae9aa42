"""Clients that are closed too early, or used in another event loop."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from coserve_client import AsyncClient, Client, InputError


def unused(request: httpx.Request) -> httpx.Response:
    raise AssertionError(request.url)


def empty(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"models": []})


CLOSED = "the client is closed; create another"


def test_a_closed_client_says_so() -> None:
    client = Client(transport=httpx.MockTransport(unused))
    client.close()
    client.close()
    for method in (client.models, client.live, client.ready):
        with pytest.raises(InputError, match=CLOSED):
            method()
    with pytest.raises(InputError, match=CLOSED):
        list(client.classify_many([b"x", b"y"], batch_size=1))
    with client, pytest.raises(InputError, match=CLOSED):
        client.classify(b"x")


def test_a_closed_asynchronous_client_says_so() -> None:
    async def run() -> None:
        client = AsyncClient(transport=httpx.MockTransport(unused))
        await client.aclose()
        await client.aclose()
        for method in (client.models, client.live, client.ready):
            with pytest.raises(InputError, match=CLOSED):
                await method()
        with pytest.raises(InputError, match=CLOSED):
            [outcome async for outcome in client.classify_many([b"x", b"y"], batch_size=1)]

    asyncio.run(run())


@pytest.fixture
def silent() -> Iterator[tuple[str, socket.socket]]:
    """A server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener


def test_a_client_closed_during_a_request_says_so(silent: Any) -> None:
    url, listener = silent
    client = Client(url)

    def close() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            client.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(InputError, match="the client was closed during a request"):
        client.models()
    thread.join()


def test_an_asynchronous_client_closed_during_a_request_says_so(silent: Any) -> None:
    url, listener = silent

    async def run() -> None:
        client = AsyncClient(url)
        asked = asyncio.create_task(client.models())
        connection, _ = await asyncio.to_thread(listener.accept)
        with connection:
            await asyncio.to_thread(connection.recv, 1)
            await client.aclose()
            with pytest.raises(InputError, match="the client was closed during a request"):
                await asked

    asyncio.run(run())


def test_an_asynchronous_client_belongs_to_one_event_loop() -> None:
    client = AsyncClient(transport=httpx.MockTransport(empty))
    asyncio.run(client.models())
    for method in (client.models, client.live, client.aclose):
        with pytest.raises(InputError, match="works in one event loop: create one in each"):
            asyncio.run(method())  # type: ignore[arg-type]
