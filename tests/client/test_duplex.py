"""Answers to a request that is still being sent, and the connections of the asynchronous client."""

import asyncio
import gc
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
import trustme

from coserve_client import (
    AsyncClient,
    BodyTooLargeError,
    CoserveError,
    RequestTimeoutError,
    UnreachableError,
)
from tests.client.variables import setenv

Ask = Callable[..., Any]
Handle = Callable[[socket.socket], None]
Start = Callable[..., str]

LARGE = 20 * 2**20


def answer(status: int, content: bytes, **headers: str) -> bytes:
    fields = {"Content-Type": "application/problem+json", "Content-Length": str(len(content)), **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + content


TOO_LARGE = answer(
    413, json.dumps({"type": "/problems/body-too-large", "detail": "at most 5 bytes"}).encode()
)
OVERLOADED = answer(503, b"{}", **{"Retry-After": "0"})


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that handle one connection after the other, and close each when it has been handled."""
    with ExitStack() as stack:

        def start(handle: Handle, context: ssl.SSLContext | None = None, buffer: int | None = None) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            if buffer is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

            def run() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with suppress(ConnectionError, ssl.SSLError), ExitStack() as open_now:
                        open_now.enter_context(connection)
                        if context is not None:
                            connection = open_now.enter_context(
                                context.wrap_socket(connection, server_side=True)
                            )
                        handle(connection)

            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return f"{'https' if context else 'http'}://127.0.0.1:{listener.getsockname()[1]}"

        yield start


def refuse_with(*answers: bytes, reset_after: float = 0.1) -> Handle:
    """Answer the first byte of a request, and then reset the connection, since the others are not read."""
    following = iter(answers)

    def handle(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(next(following))
        time.sleep(reset_after)

    return handle


def test_an_answer_during_the_upload_is_received(ask: Ask, start: Start) -> None:
    url = start(refuse_with(TOO_LARGE))
    with pytest.raises(BodyTooLargeError, match="at most 5 bytes"):
        ask(url, "classify", bytes(LARGE))


@pytest.mark.parametrize("size", [50_000, LARGE])
def test_an_answer_together_with_a_reset_is_hardly_ever_lost(ask: Ask, start: Start, size: int) -> None:
    url = start(refuse_with(*[TOO_LARGE] * 10, reset_after=0))
    errors: list[type[CoserveError]] = []
    for _ in range(10):
        with pytest.raises(CoserveError) as caught:
            ask(url, "classify", bytes(size))
        errors.append(caught.type)
    assert errors.count(BodyTooLargeError) >= 8


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_an_answer_during_the_upload_is_received_with_tls(
    ask: Ask, start: Start, authority: trustme.CA
) -> None:
    url = start(refuse_with(TOO_LARGE), server_context(authority))
    with pytest.raises(BodyTooLargeError):
        ask(url, "classify", bytes(LARGE), options={"verify": client_context(authority)})


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("verify_mode", [ssl.CERT_NONE, ssl.CERT_REQUIRED])
def test_tls_that_breaks_during_the_upload_is_an_error_of_the_connection(
    ask: Ask, start: Start, authority: trustme.CA, verify_mode: ssl.VerifyMode, size: int
) -> None:
    """A server of TLS 1.3 finds that there is no certificate when the client sends already."""
    context = server_context(authority)
    context.verify_mode = verify_mode
    url = start(lambda _: None, context)
    for _ in range(5):
        with pytest.raises(UnreachableError, match="the server may require a client certificate"):
            ask(url, "classify", bytes(size), options={"verify": client_context(authority)})


def test_a_request_that_is_refused_during_the_upload_is_retried(ask: Ask, start: Start) -> None:
    url = start(refuse_with(OVERLOADED, OVERLOADED, TOO_LARGE))
    with pytest.raises(BodyTooLargeError):
        ask(url, "classify", bytes(LARGE))


def test_the_timeout_of_sending_is_not_that_of_the_whole_upload(ask: Ask, start: Start) -> None:
    def receive_slowly(connection: socket.socket) -> None:
        left = LARGE
        while left > 0 and (received := connection.recv(2**16)):
            left -= len(received)
            time.sleep(0.01)
        connection.sendall(TOO_LARGE)

    url = start(receive_slowly, buffer=2**16)
    started = time.monotonic()
    with pytest.raises(BodyTooLargeError):
        ask(url, "classify", bytes(LARGE), options={"timeout": httpx.Timeout(60, write=1)})
    assert time.monotonic() - started > 2


def test_sending_to_a_server_that_reads_nothing_ends(ask: Ask, start: Start) -> None:
    done = threading.Event()
    url = start(lambda _: assert_set(done))
    with pytest.raises(RequestTimeoutError, match="WriteTimeout"):
        ask(url, "classify", bytes(LARGE), options={"timeout": httpx.Timeout(60, write=0.1)})
    done.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)


def test_a_compressed_answer_is_read(ask: Ask, start: Start) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(2**16)
        models = gzip.compress(b'{"models": []}')
        connection.sendall(answer(200, models, **{"Content-Encoding": "gzip"}))

    assert ask(start(handle), "models") == ()


def test_a_proxy_gets_its_password(ask: Ask, loopback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, HTTP_PROXY=loopback.url.replace("//", "//user:secret@"))
    assert ask("http://server.example", "classify", b"x").results
    assert loopback.headers["Proxy-Authorization"] == "Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize("write", [60, 0.1])
def test_nothing_is_left_of_a_request_that_ends_while_it_is_sent(start: Start, write: float) -> None:
    reported: list[Any] = []
    sending = threading.Event()
    done = threading.Event()

    def hold(connection: socket.socket) -> None:
        connection.recv(1)
        sending.set()
        assert_set(done)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with AsyncClient(start(hold), timeout=httpx.Timeout(60, write=write)) as client:
            asked = asyncio.create_task(client.classify(bytes(LARGE)))
            await asyncio.to_thread(assert_set, sending)
            if write == 60:
                asked.cancel()
            with pytest.raises((asyncio.CancelledError, RequestTimeoutError)):
                await asked
        done.set()
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  # the tasks may not be asked
            await asyncio.sleep(0)

    asyncio.run(run())
    # Tasks report errors that nobody asked for when they are collected.
    gc.collect()
    assert reported == []
