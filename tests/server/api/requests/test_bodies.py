"""Slow bodies, without a socket."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Receive

from coserve_server.api.requests import bodies
from tests.server.api.application import INFER, Server
from tests.server.fake_engine import FakeEngine, ensemble

RATE = 1000


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "GRACE_S", 0.2)


def upload(pieces: Iterator[bytes], pause_s: float, path: str = "/v1/classify", **settings: Any) -> Any:
    """Send these pieces and then nothing more; return the response's status and document."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        piece = next(pieces, None)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": True}

    return answer(receive, path, **settings)


def answer(receive: Receive, path: str = "/v1/classify", **settings: Any) -> Any:
    """Return the response's status and document."""
    server = Server(FakeEngine(ensemble()), **{"min_upload_rate": RATE, **settings})
    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1"}
    scope["headers"] = [(b"content-type", b"image/png")]

    async def go() -> None:
        # Without a limit, the server would wait for ever.
        await asyncio.wait_for(server.app(scope, receive, send), 30)

    asyncio.run(go())
    return answers[0]["status"], json.loads(answers[1]["body"])


@pytest.mark.parametrize(("count", "pause_s"), [(0, 0), (1000, 0.02)])
def test_a_body_that_comes_too_slowly_is_not_waited_for(count: int, pause_s: float) -> None:
    pieces = (b"a" for _ in range(count))
    status, document = upload(pieces, pause_s)
    assert (status, document["type"]) == (408, "/problems/upload-timeout")
    assert document["detail"] == "the body arrives at less than 1000 bytes per second"
    assert len(list(pieces)) > count / 2 or count == 0, "the upload was ended early"


def test_the_open_inference_protocol_says_it_in_its_own_words() -> None:
    status, document = upload(iter([b"{"]), 0, INFER)
    assert (status, document) == (408, {"error": "the body arrives at less than 1000 bytes per second"})


def test_bytes_that_came_earn_time() -> None:
    """The body arrives at ten times the rate for five times the grace period, until it is too large."""
    pieces = (bytes(10 * RATE) for _ in range(100))
    status, document = upload(pieces, 0.01, max_body_bytes=995 * RATE)
    assert (status, document["type"]) == (413, "/problems/body-too-large")


def test_a_body_that_came_while_the_server_was_busy_is_not_late() -> None:
    ours, theirs = socket.socketpair()
    arrived = asyncio.Event()

    def be_busy() -> None:
        theirs.send(b"a")
        time.sleep(2 * bodies.GRACE_S)

    async def receive() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if not arrived.is_set():
            loop.add_reader(ours, arrived.set)
            loop.call_soon(be_busy)
        await arrived.wait()
        return {"type": "http.request", "body": b"a", "more_body": False}

    with ours, theirs:
        status, document = answer(receive)
    assert (status, document["type"]) == (400, "/problems/bad-image")


def test_the_rate_can_be_left_out() -> None:
    status, document = upload(iter([b"a"]), 0, min_upload_rate=0, upload_timeout_ms=500)
    assert (status, document["detail"]) == (408, "the body took longer than 500 ms")
