"""How a real server stops while clients ask it."""

import signal
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
    """As a load balancer does it: a server that says it is not ready gets no more requests."""
    return http.get("/readyz").status_code == 503


def test_no_request_is_lost_where_clients_heed_readiness(serve: Serve, repository: Path) -> None:
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
