import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from coserve_client import AsyncClient, Client, Image, RequestTimeoutError, UnreachableError

Ask = Callable[..., Any]


def test_uploads_files_in_order_under_their_base_names(ask: Ask, loopback: Any, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.jpg", "a b.PNG", "ü.webp")]
    for path in paths:
        path.write_bytes(path.name.encode() * 50_000)

    answer = ask(loopback.url, "classify", [*paths, Image(b"\r\n--", "unknown")])

    assert [part.get_payload(decode=True) for part in loopback.parts] == [
        *(path.read_bytes() for path in paths),
        b"\r\n--",
    ]
    assert {part.get_param("name", header="content-disposition") for part in loopback.parts} == {"files"}
    assert [part.get_content_type() for part in loopback.parts][:2] == ["image/jpeg", "image/png"]
    assert len(answer.results) == 4
    assert answer.results[0].filename == "b.jpg"


def test_replays_the_body_on_a_retry(ask: Ask, loopback: Any) -> None:
    loopback.statuses = [503, 503, 200]
    ask(loopback.url, "classify", b"x" * 300_000)
    assert len(loopback.bodies) == 3
    assert len(set(loopback.bodies)) == 1


def test_reuses_its_connection_and_bypasses_proxies_for_loopback(
    loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Client(loopback.url) as client:
        for _ in range(3):
            client.classify(b"x")
    assert loopback.connections == 1


def test_does_not_reuse_a_connection_that_the_server_may_be_closing(
    loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic = time.monotonic
    with Client(loopback.url) as client:
        client.classify(b"x")
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3)
        client.classify(b"x")
    assert loopback.connections == 2


NO_MODELS = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"models":[]}'


def closing_server(listener: socket.socket, requests: list[bytes], answered: int, last: bytes) -> None:
    """Answer `answered` requests per connection, reply `last` to the next one, and close the connection."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                for left in range(answered, -1, -1):
                    if not (request := connection.recv(65536)):
                        break
                    requests.append(request)
                    connection.sendall(NO_MODELS if left else last)


@pytest.fixture
def closing() -> Iterator[Callable[..., tuple[str, list[bytes]]]]:
    with ExitStack() as stack:

        def start(answered: int, last: bytes = b"") -> tuple[str, list[bytes]]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            requests: list[bytes] = []
            thread = threading.Thread(target=closing_server, args=(listener, requests, answered, last))
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return f"http://127.0.0.1:{listener.getsockname()[1]}", requests

        yield start


def test_repeats_a_request_that_met_a_closing_connection(closing: Any) -> None:
    url, requests = closing(1)
    with Client(url) as client:
        assert client.models() == ()
        assert client.models() == ()
    assert len(requests) == 3


def test_repeats_a_request_that_met_a_closing_connection_async(closing: Any) -> None:
    url, requests = closing(1)

    async def run() -> None:
        async with AsyncClient(url) as client:
            assert await client.models() == ()
            assert await client.models() == ()

    asyncio.run(run())
    assert len(requests) == 3


def test_does_not_repeat_what_was_answered_in_part(closing: Any) -> None:
    url, requests = closing(1, last=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    with Client(url) as client:
        assert client.live()
        with pytest.raises(UnreachableError, match=r"broke within the response \(peer closed[^;]*$"):
            client.models()
    assert len(requests) == 2


def test_does_not_repeat_what_a_new_connection_did_not_answer(ask: Ask, closing: Any) -> None:
    url, requests = closing(0)
    with pytest.raises(UnreachableError, match="Server disconnected"):
        ask(url, "models")
    assert len(requests) == 1


def test_reports_a_connection_that_is_closed_during_the_tls_handshake(ask: Ask, closing: Any) -> None:
    url, _ = closing(0)
    secure = url.replace("http:", "https:")
    with pytest.raises(UnreachableError, match=rf"^the TLS handshake with {secure} failed \(.*(EOF|closed)"):
        ask(secure, "models")


def test_reports_that_nothing_listens(ask: Ask) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=url):
            ask(url, "classify", b"x")
        assert ask(url, "live") is False
        assert ask(url, "ready") is False


def test_does_not_wait_forever(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestTimeoutError, match="ReadTimeout"):
            ask(url, "models", options={"timeout": httpx.Timeout(5, read=0.05)})
