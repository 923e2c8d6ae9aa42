"""A server that gets hostile requests refuses them with a reason, goes on serving, and leaks nothing."""

import contextlib
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from coserve_server.transport.connections import MAX_PIPELINED
from tests.images.hostile_images import REFUSED, SHOWN
from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify, problem
from tests.integration.hostile_requests import FOR_PAIR, HTTP, JSON, MULTIPART, POST, STAGES, TENSORS
from tests.integration.load import until
from tests.server.onnx_repository import LABELS, write_repository

LIMIT_MS = 2000
MAX_CONNECTIONS = 40


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory, error_log: Path) -> Iterator[Server]:
    with error_log.open("w") as file:
        yield start(serve, tmp_path_factory, file)


def start(serve: Serve, tmp_path_factory: pytest.TempPathFactory, log: IO[str]) -> Server:
    server = serve(
        write_repository(tmp_path_factory.mktemp("models"), "pair"),
        log=log,
        max_body_bytes=2_000_000,
        max_images=8,
        max_pixels=10_000,
        upload_timeout_ms=LIMIT_MS,
        head_timeout_ms=LIMIT_MS,
        max_connections=MAX_CONNECTIONS,
    )
    for _ in range(20):
        assert classify(server, *[RED] * 8).status_code == 200
    return server


@pytest.fixture(scope="module")
def resources(server: Server) -> dict[str, int]:
    """Resources that the server holds before the hostile requests."""
    return held(server)


def held(server: Server) -> dict[str, int]:
    process = psutil.Process(server.process.pid)
    return {
        "bytes": process.memory_info().rss,
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }


@pytest.fixture(autouse=True)
def check_it_goes_on(server: Server, resources: dict[str, int]) -> Iterator[None]:
    """Check after every test that a valid request gets the right answer."""
    yield
    response = classify(server, RED, top_k=1)
    assert response.status_code == 200, response.text
    assert response.json()["results"][0]["predictions"][0]["label"] in LABELS


def post(server: Server, path: str = "/v1/classify", **arguments: Any) -> Any:
    with server.http() as http:
        return http.post(path, **arguments)


def connect(server: Server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), 60)


def receive_all(connection: socket.socket) -> bytes:
    """Receive until the server closes the connection."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers) if status != b"100"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_image_is_refused(server: Server, name: str) -> None:
    response = post(server, content=REFUSED[name](), headers={"Content-Type": "image/png"})
    assert problem(response, 400, "bad-image").startswith("image 0: ")


@pytest.mark.parametrize("name", SHOWN)
def test_a_strange_image_is_classified(server: Server, name: str) -> None:
    response = post(server, content=SHOWN[name](), headers={"Content-Type": "image/png"})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", JSON)
def test_hostile_json_is_refused(server: Server, name: str) -> None:
    for path in ("/v1/classify", "/v2/models/pair/infer"):
        response = post(server, path, content=JSON[name], headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 413, 422), response.text
        assert len(response.content) < 3000
    # This route ignores unknown keys.
    assert post(server, "/v2/repository/index", content=JSON[name]).status_code in (200, 400, 413)


@pytest.mark.parametrize("name", MULTIPART)
def test_hostile_multipart_is_refused(server: Server, name: str) -> None:
    content_type, body, allowed = MULTIPART[name]
    response = post(server, content=body, headers={"Content-Type": content_type})
    assert response.status_code in allowed, response.text


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_tensors_are_refused(server: Server, name: str) -> None:
    body, headers = TENSORS[name]
    if "length" in headers:
        length = str(body.index(b"}]}") + 3) if headers["length"] == "json" else headers["length"]
        headers = {"Inference-Header-Content-Length": length}
    response = post(server, "/v2/models/pair/infer", content=body, headers=headers)
    assert response.status_code in (400, 413, 415), response.text
    assert list(response.json()) == ["error"]
    assert len(response.content) < 5000


@pytest.mark.parametrize("name", HTTP | FOR_PAIR)
def test_hostile_http_is_refused(server: Server, name: str) -> None:
    sent, allowed = (HTTP | FOR_PAIR)[name]
    with connect(server) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        answers = receive_all(connection)
    assert statuses(answers) in allowed, answers


def drip(connection: socket.socket, data: bytes) -> bytes:
    """Send byte by byte until the server responds, and return the response."""
    connection.settimeout(0.1)
    for byte in data:
        connection.send(bytes([byte]))
        with contextlib.suppress(TimeoutError):
            answer = connection.recv(65536)
            connection.settimeout(60)
            # The headers and the document may arrive separately.
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            return answer
    raise AssertionError("the server took it all")


def test_slow_heads_end(server: Server) -> None:
    with connect(server) as first, connect(server) as later, connect(server) as silent:
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"alive" not in answer:
            answer += later.recv(65536)
        for connection in (first, later):
            answer = drip(connection, b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10_000)
            assert statuses(answer) == [408]
            assert b"/problems/head-timeout" in answer
        assert statuses(receive_all(silent)) == [408]


def test_slow_bodies_end(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        answer = drip(connection, bytes(10_000))
    assert statuses(answer) == [408]
    assert b"/problems/upload-timeout" in answer


def test_more_connections_than_allowed_are_refused(server: Server) -> None:
    connections = [connect(server) for _ in range(MAX_CONNECTIONS)]
    try:
        with server.http() as http:
            refused = http.get("/v1/models")
            assert http.get("/healthz").status_code == 200, "health is told above the limit"
        problem(refused, 503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
    finally:
        for connection in connections:
            connection.close()
    until(lambda: classify(server, RED).status_code == 200)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    image = POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    wrong = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        connection.sendall((ask + image + wrong) * 20 + ask[:-2] + b"Connection: close\r\n\r\n")
        assert statuses(receive_all(connection)) == [200, 200, 404] * 20 + [200]


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_too_many_pipelined_requests_are_left_unread(server: Server, upgrade: bytes) -> None:
    """Those that were read are answered, and the last answer says that the connection closes."""
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n%b\r\n" % upgrade * 2000)
        answers = receive_all(connection)
    assert statuses(answers) == [200] * (1 + MAX_PIPELINED)
    assert answers.lower().count(b"connection: close") == 1


@pytest.mark.parametrize("pause", [0, 0.2])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_upgrades_are_ignored_and_bodies_read(server: Server, pause: float, protocol: bytes) -> None:
    """Otherwise a body would be lost, or be read as the next request (RFC 9110, section 7.8)."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n" % protocol
    hidden = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    with connect(server) as connection:
        for body, framing in (
            (RED, b"Content-Length: %d\r\n\r\n" % len(RED)),
            (b"%x\r\n%b\r\n0\r\n\r\n" % (len(RED), RED), b"Transfer-Encoding: chunked\r\n\r\n"),
            (hidden, b"Content-Length: %d\r\n\r\n" % len(hidden)),
        ):
            connection.sendall(POST + upgrade + framing)
            time.sleep(pause)
            connection.sendall(body + ask + upgrade + b"\r\n")
        connection.sendall(ask + b"Connection: close\r\n\r\n")
        assert statuses(receive_all(connection)) == [200, 200, 200, 200, 400, 200, 200]


def test_empty_lines_keep_no_connection_open(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"alive" not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"\r\n")
        assert statuses(receive_all(connection)) == [408]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reset", [False, True])
def test_disconnects_are_survived(server: Server, stage: str, reset: bool) -> None:
    for turn in range(10):
        with connect(server) as connection:
            connection.sendall(STAGES[stage])
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # By then the first of many responses is being sent.
                time.sleep(0.003 * turn)


def count_refused(server: Server) -> Counter[str]:
    with server.http() as http:
        text = http.get("/metrics").text
    counted = re.findall(r'coserve_connections_refused_total\{reason="(.*)"\} (.*)', text)
    return Counter({reason: int(float(count)) for reason, count in counted})


def test_refused_connections_are_counted(server: Server) -> None:
    before = count_refused(server)
    for name in ("no HTTP", "a long line", "CONNECT"):
        with connect(server) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(HTTP[name][0])
            receive_all(connection)
    silent = [connect(server) for _ in range(MAX_CONNECTIONS)]
    with server.http() as http:
        http.get("/v1/models")
    for connection in silent:
        receive_all(connection)
        connection.close()
    counted = count_refused(server) - before
    # An earlier connection may still have been open.
    assert counted["overloaded"] >= 1
    assert counted.pop("overloaded") + counted.pop("head-timeout") == MAX_CONNECTIONS + 1
    assert counted == {"bad-request": 1, "head-too-large": 1, "method-not-allowed": 1}


def test_no_error_is_logged_that_is_not_the_server_s(server: Server, error_log: Path) -> None:
    assert classify(server, RED).status_code == 200
    assert "Traceback" not in error_log.read_text()


def test_nothing_of_all_that_is_kept(server: Server, resources: dict[str, int]) -> None:
    """The last test: abandoned requests have ended, and their memory is freed."""
    until(lambda: held(server)["files"] <= resources["files"])
    after = held(server)
    assert after["threads"] <= resources["threads"] + 8, "the pools of threads are bounded"
    assert after["bytes"] < resources["bytes"] + 200 * 2**20
    with server.http() as http:
        until(lambda: http.get("/readyz").status_code == 200)
