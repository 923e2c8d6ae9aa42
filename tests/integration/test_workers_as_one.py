"""What clients and operators see of several workers is one server."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify
from tests.integration.load import PNG, Load, until
from tests.integration.test_workers import metric, workers
from tests.server.onnx_repository import BUSY, add_version, write_repository

CONNECTIONS = 6


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("models"), "pair")
    write_repository(folder, "busy", members=1, faults={0: BUSY})
    return write_repository(folder, "single", members=1)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "lines"


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path, log: Path) -> Server:
    with log.open("w") as file:
        return serve(
            repository,
            workers=2,
            grpc_port=0,
            drain_delay_ms=3_600_000,
            max_requests=65,
            repository_poll_ms=0,
            repository_control=True,
            log_level="info",
            log_format="json",
            log=file,
        )


def on_each(server: Server, ask: Callable[[httpx.Client], Any]) -> list[Any]:
    """Ask over connections that are open at the same time, so that every worker has some of them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.http()) for _ in range(CONNECTIONS)]
        return [ask(client) for client in clients]


def test_the_summary_is_told_once(server: Server) -> None:
    first = [line.split()[0] for line in server.announcement]
    assert first == ["Coserve", "gRPC", "busy:", "pair:", "single:", "2", "try:"]


def test_counts_add_up(server: Server, log: Path) -> None:
    answers = on_each(server, lambda http: http.post("/v1/classify?model=pair", content=RED, headers=PNG))
    assert {answer.status_code for answer in answers} == {200}
    # A line is written after its answer.
    until(lambda: logged(log).total() >= CONNECTIONS)
    assert logged(log).keys() == {1, 2}
    assert logged(log).total() == CONNECTIONS
    count = 'coserve_requests_total{model="pair",route="/v1/classify",status="200"}'
    assert metric(server, count) == CONNECTIONS
    assert metric(server, 'coserve_request_duration_seconds_count{model="pair"}') == CONNECTIONS
    assert metric(server, 'coserve_request_duration_seconds_bucket{le="+Inf",model="pair"}') == CONNECTIONS
    assert metric(server, "coserve_requests_limit") == 65
    assert metric(server, 'coserve_model_ready{model="pair",version="1"}') == 1
    for statistics in on_each(server, lambda http: http.get("/v2/models/pair/stats").json()):
        (model,) = statistics["model_stats"]
        assert model["inference_count"] == model["inference_stats"]["success"]["count"] == CONNECTIONS
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        (counters,) = client.get_inference_statistics("pair").model_stats
    assert counters.inference_count == CONNECTIONS


def logged(log: Path) -> Counter[int]:
    """Count the classifications in the access log by worker."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    lines = [json.loads(line) for line in whole]
    return Counter(line["worker"] for line in lines if "/v1/classify" in line["message"])


def test_models_are_loaded_and_unloaded_everywhere(server: Server, repository: Path) -> None:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        with Load(server, "single") as load:
            add_version(repository, "pair", 2)
            client.load_model("pair")
            assert versions(server) == {"2"}
            client.unload_model("pair")
            assert versions(server) == {None}
            index = on_each(server, lambda http: http.post("/v2/repository/index").json())
            reasons = {model["reason"] for models in index for model in models if model["name"] == "pair"}
            assert reasons == {"unloaded"}
            client.load_model("pair")
            assert versions(server) == {"2"}
        assert load.failures == []
        with pytest.raises(triton_http.InferenceServerException, match="has no ensemble 'cow'"):
            client.load_model("cow")
        with pytest.raises(triton_http.InferenceServerException, match="no ensemble 'cow' is served"):
            client.unload_model("cow")


def versions(server: Server) -> set[str | None]:
    """Return the versions of `pair` that the workers serve."""
    return set(on_each(server, lambda http: http.get("/v1/models/pair").json().get("version")))


def test_a_fault_of_one_worker_is_the_servers(server: Server) -> None:
    with server.http() as first:

        def told() -> set[str]:
            """Keep one worker's member busy for longer than anyone waits; return what all say then."""
            headers = {**PNG, "Request-Timeout-Ms": "100"}
            assert first.post("/v1/classify?model=busy", content=RED, headers=headers).is_server_error
            return set(on_each(server, lambda http: http.get("/readyz").json().get("detail", "ready")))

        until(lambda: any(text.startswith("worker ") for text in told()))
    until(lambda: classify(server, RED, model="single").is_success)


def test_every_worker_answers_over_grpc(server: Server) -> None:
    port = int(server.grpc.rpartition(":")[2])
    for worker in workers(server):
        listening = [one for one in worker.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert [one.laddr.port for one in listening] == [port]
    for _ in range(CONNECTIONS):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=60)


def test_a_second_signal_ends_the_workers_too(server: Server) -> None:
    left = workers(server)
    server.process.send_signal(signal.SIGTERM)
    with server.http() as http:
        until(lambda: "stopping" in http.get("/readyz").text)
        assert http.get("/readyz").json()["detail"].count("the server is stopping") == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(left, 60)[1] == []
