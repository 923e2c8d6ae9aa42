import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from coserve_client import AsyncClient, Client
from tests.client.variables import CERTIFICATES, PROXIES


def member(index: int, used: bool = True) -> dict[str, Any]:
    error = None if used else "out of memory"
    return {
        "name": f"E_member{index}",
        "used": used,
        "device": f"cpu:{index}",
        "start_ms": 0.02,
        "end_ms": 17 if used else None,
        "error": error,
    }


def result(filename: str) -> dict[str, Any]:
    prediction = {"label": "cat", "class_id": 3, "probability": 0.93, "logit": 7.1}
    return {
        "filename": filename,
        "predictions": [prediction],
        "uncertainty": {"entropy": 0.3, "disagreement": 0.1},
        "member_predictions": None,
    }


def make_reply(*filenames: str) -> dict[str, Any]:
    return {
        "model": "E",
        "version": "1",
        "degraded": False,
        "measured_top1": 0.93,
        "overlap": 1.93,
        "members": [member(0), member(1)],
        "timings_ms": {
            "decode": 1.0,
            "preprocess": 0.5,
            "queue": 0,
            "inference": 17.4,
            "combine": 0.1,
            "total": 20,
        },
        "results": [result(name) for name in filenames],
    }


class Loopback(ThreadingHTTPServer):
    """A real HTTP server that answers with each of `statuses` in turn, and then repeats the last one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.statuses = [200]
        self.bodies: list[bytes] = []
        self.parts: list[Message] = []
        self.headers: Message = Message()
        self.connections = 0

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


class Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        self.server.headers = self.headers
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        self.server.parts = message_from_bytes(head + body).get_payload()  # type: ignore[assignment]
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        content = json.dumps(make_reply(*(str(part.get_filename()) for part in self.server.parts))).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with Loopback() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield server
        server.shutdown()


@pytest.fixture
def reply() -> Callable[..., dict[str, Any]]:
    """Build a server's reply for the given file names."""
    return make_reply


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call one method of a new client, synchronous or asynchronous, on a handler or a URL."""

    def sync(
        server: Any, method: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        with Client(**_target(server), **(options or {})) as client:
            return getattr(client, method)(*args, **kwargs)

    def asynchronous(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(awaited(*args, **kwargs))

    async def awaited(
        server: Any, method: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        async with AsyncClient(**_target(server), **(options or {})) as client:
            return await getattr(client, method)(*args, **kwargs)

    return sync if request.param == "sync" else asynchronous


def _target(server: Any) -> dict[str, Any]:
    return {"url": server} if isinstance(server, str) else {"transport": httpx.MockTransport(server)}


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the shell's variables for proxies and certificates."""
    for name in (*PROXIES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
