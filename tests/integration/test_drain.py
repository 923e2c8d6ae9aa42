"""Stopping a real server while clients send requests."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import Serve
from tests.integration.gateway import RED, classify, until_ready
from tests.integration.load import Load
from tests.server.onnx_repository import write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"), "pair")


def leaves(http: httpx.Client) -> bool:
    """Return whether a load balancer would stop sending requests: the server is not ready."""
    return http.get("/readyz").status_code == 503


def test_no_request_is_lost_if_clients_heed_readiness(serve: Serve, repository: Path) -> None:
    server = serve(repository, drain_delay_ms=5000)
    with Load(server, enough=leaves) as load:
        server.process.send_signal(signal.SIGTERM)
        until_ready(server, ready=False)
        with server.http() as http:
            assert http.get("/v2/health/ready").json() == {"ready": False}
            assert http.get("/healthz").json() == {"status": "alive"}
            assert "the server is stopping" in http.get("/readyz").json()["detail"]
        late = classify(server, RED)
        assert late.status_code == 200
        assert late.headers["Connection"] == "close", "clients are to connect elsewhere"
        assert server.process.wait(60) == 0
    assert load.failures == []


def test_a_request_in_progress_ends_its_connection(serve: Serve, repository: Path) -> None:
    server = serve(repository, drain_delay_ms=3_600_000)
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(RED)
        )
        assert b"100" in connection.recv(100)
        server.process.send_signal(signal.SIGTERM)
        until_ready(server, ready=False)
        connection.sendall(RED)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close\r\n" in answer.lower()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)


def test_a_thread_that_never_ends_keeps_no_process(repository: Path) -> None:
    """A thread that waits for a GPU may hang."""
    code = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(3600,)).start()\n"
        "from coserve_cli.main import app\n"
        "app()\n"
    )
    command = [sys.executable, "-c", code, "serve", "--repository", repository, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Coserve at ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_ctrl_c_waits_for_nobody_new(serve: Serve, repository: Path) -> None:
    server = serve(repository, drain_delay_ms=3_600_000)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(serve: Serve, repository: Path, second: signal.Signals) -> None:
    server = serve(repository, drain_delay_ms=3_600_000)
    server.process.send_signal(signal.SIGTERM)
    until_ready(server, ready=False)
    server.process.send_signal(second)
    assert server.process.wait(60) == 128 + second
