"""Starting `coserve serve`, its refusals to start, and stopping it."""

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, encoded, refused
from tests.server.onnx_repository import write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("models"), "pair")
    return write_repository(folder, "single", members=1)


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--default-model", "pair")


def test_sigterm_lets_requests_finish(serve: Serve, repository: Path) -> None:
    server = serve(repository)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(
            b"POST /v1/classify?model=pair HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(RED)
        )
        assert b"100" in connection.recv(100)
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(server.stop)
            connection.sendall(RED)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            stopped.result(60)


def test_the_announcement_can_be_pasted(server: Server, tmp_path: Path) -> None:
    assert any("pair (default): 2 members" in line for line in server.announcement)
    (tmp_path / "photo.jpg").write_bytes(encoded("red", "JPEG"))
    command = server.announcement[-1].removeprefix("  try: ")
    output = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert json.loads(output.stdout)["model"] == "pair"


def test_a_taken_port_is_one_clear_line(server: Server, repository: Path) -> None:
    port = server.url.rpartition(":")[2]
    line = refused("--repository", repository, "--port", port)
    assert line.startswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose ")


def test_what_prevents_a_start_is_one_clear_line(repository: Path) -> None:
    line = refused("--port", "0", "--repository", repository, "--default-model", "cow")
    assert line == "error: settings: default_model: 'cow' is not served; choose from pair, single"
    line = refused("--repository", repository, "--engine", "triton", "--triton-url", "localhost:8001")
    assert line == ("error: settings: repository: engine triton serves what Triton has loaded; leave it out")
    line = refused("--engine", "triton", "--triton-url", "http://localhost:8000")
    assert line == (
        "error: settings: triton_url: 'http://localhost:8000' is not HOST:PORT of Triton's gRPC service, "
        "such as 127.0.0.1:8001"
    )


def test_an_idle_connection_is_closed_when_the_setting_says(serve: Serve, repository: Path) -> None:
    host, _, port = serve(repository, idle_timeout_ms=50).url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        # Far less than the default, so that without the setting this would time out.
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: 18\r\n" in answer
    assert answer.endswith(b"\r\n\r\n"), "the answer to HEAD has no body"
