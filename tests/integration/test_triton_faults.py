"""A real Triton that dies, freezes, lacks models or starts late: the gateway never gives a wrong answer."""

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc

from tests.integration.conftest import Serve, Server, StartTriton
from tests.integration.gateway import RED, classify, logits, member_logits, problem, refused, until_ready
from tests.server.onnx_repository import HANGS, limit_instances, write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return limit_instances(write_repository(tmp_path_factory.mktemp("models")))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Load:
    """Clients that send requests without pause; each gets the right answer or a problem to act on."""

    def __init__(self, gateway: Server, repository: Path) -> None:
        self.gateway = gateway
        self.members = member_logits(repository, "pair", (1, 0, 0))
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        with self.gateway.http() as http:
            while not self.over.is_set():
                self.answers[self.ask(http)] += 1

    def ask(self, http: httpx.Client) -> str:
        response = http.post("/v1/classify", files={"files": ("red.png", RED)})
        if response.status_code != 200:
            if (response.status_code, response.json()["type"]) not in (
                (503, "/problems/no-quorum"),
                (504, "/problems/deadline"),
            ):
                self.wrong.append(response.text)
            return "problem"
        reply = response.json()
        used = [index for index, member in enumerate(reply["members"]) if member["used"]]
        if np.abs(logits(reply, 0) - self.members[used].mean(axis=0)).max() > 1e-4:
            self.wrong.append(response.text)
        if reply["degraded"] is not (len(used) < 2):
            self.wrong.append(response.text)
        return "degraded" if reply["degraded"] else "whole"

    def wait_for(self, kind: str, more: int = 10) -> None:
        """Wait for more answers of a kind."""
        wanted = self.answers[kind] + more
        for _ in range(12_000):
            if self.answers[kind] >= wanted:
                return
            time.sleep(0.01)
        pytest.fail(f"no more answers of kind {kind!r}, only {self.answers}")


@contextmanager
def load(gateway: Server, repository: Path) -> Iterator[Load]:
    load = Load(gateway, repository)
    threads = [threading.Thread(target=load.run) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join()
    assert load.wrong == []


def held(gateway: Server, port: int) -> tuple[int, int]:
    """Count the gateway's connections to a port, and its open files, once its clients have disconnected."""
    process = psutil.Process(gateway.process.pid)
    samples = []
    for _ in range(20):
        time.sleep(0.05)
        to_port = [one for one in process.net_connections() if one.raddr and one.raddr.port == port]
        samples.append((len(to_port), process.num_fds()))
    return min(samples)


def test_killed_under_load(triton: StartTriton, serve: Serve, repository: Path) -> None:
    server = triton(repository)
    port = server.grpc.rpartition(":")[2]
    gateway = serve(None, "--triton-url", server.grpc, "--min-members", "1", "--deadline-ms", "5000")
    until_ready(gateway)
    classify(gateway, RED)
    before = held(gateway, int(port))
    with load(gateway, repository) as clients:
        clients.wait_for("whole")
        server.signal(signal.SIGKILL)
        clients.wait_for("problem")
        until_ready(gateway, False)
        with gateway.http() as http:
            assert "pair: 1 member is needed" in problem(http.get("/readyz"), 503, "no-quorum")
        back = triton(repository, "--grpc-port", port)
        until_ready(gateway)
        clients.wait_for("whole")
    assert classify(gateway, RED).json()["degraded"] is False
    assert held(gateway, int(port)) == before
    back.stop()


def test_frozen_for_three_seconds(triton: StartTriton, serve: Serve, repository: Path) -> None:
    server = triton(repository)
    gateway = serve(None, "--triton-url", server.grpc, "--min-members", "1", "--deadline-ms", "60000")
    until_ready(gateway)
    with load(gateway, repository) as clients:
        clients.wait_for("whole")
        server.signal(signal.SIGSTOP)
        try:
            time.sleep(3)
            until_ready(gateway, False)
        finally:
            server.signal(signal.SIGCONT)
        until_ready(gateway)
        clients.wait_for("whole")
    assert clients.answers["problem"] == 0, "the deadline was far away"
    server.stop()


def test_the_deadline_holds_while_frozen(triton: StartTriton, serve: Serve, repository: Path) -> None:
    server = triton(repository)
    gateway = serve(None, "--triton-url", server.grpc, "--min-members", "1", "--deadline-ms", "1000")
    until_ready(gateway)
    server.signal(signal.SIGSTOP)
    try:
        assert "no answer before the deadline" in problem(classify(gateway, RED), 504, "deadline")
    finally:
        server.signal(signal.SIGCONT)
    until_ready(gateway)
    classify(gateway, RED)
    assert classify(gateway, RED).status_code == 200
    server.stop()


def test_one_of_two_servers_dies_and_nobody_notices(
    triton: StartTriton, serve: Serve, repository: Path
) -> None:
    first = triton(repository)
    second = triton(repository)
    gateway = serve(None, "--triton-url", f"{first.grpc},{second.grpc}", "--deadline-ms", "60000")
    until_ready(gateway)
    with load(gateway, repository) as clients:
        clients.wait_for("whole", 20)
        first.signal(signal.SIGKILL)
        clients.wait_for("whole", 20)
        back = triton(repository, "--grpc-port", first.grpc.rpartition(":")[2])
        clients.wait_for("whole", 20)
    assert set(clients.answers) == {"whole"}
    back.stop()
    second.stop()


def test_a_gateway_started_before_triton(triton: StartTriton, serve: Serve, repository: Path) -> None:
    port = free_port()
    gateway = serve(None, "--triton-url", f"127.0.0.1:{port}", "--default-model", "pair")
    assert gateway.announcement[1].startswith("  not ready: no Triton server has an ensemble (127.0.0.1:")
    with gateway.http() as http:
        assert http.get("/healthz").status_code == 200
        detail = problem(http.get("/readyz"), 503, "no-quorum")
        assert http.get("/v1/models").json()["models"] == []
    assert f"127.0.0.1:{port}: " in detail
    response = classify(gateway, RED, model="pair")
    assert "no Triton server has an ensemble" in problem(response, 503, "no-quorum")
    assert response.headers["Retry-After"]
    server = triton(repository, "--grpc-port", str(port))
    until_ready(gateway)
    reply = classify(gateway, RED).json()
    expected = member_logits(repository, "pair", (1, 0, 0)).mean(axis=0)
    np.testing.assert_allclose(logits(reply, 0), expected, atol=1e-4)
    server.stop()


def test_a_model_that_cannot_be_loaded(triton: StartTriton, serve: Serve, tmp_path: Path) -> None:
    write_repository(tmp_path, "sound")
    write_repository(tmp_path, "broken")
    (tmp_path / "broken_member1/1/model.onnx").write_bytes(b"no model")
    server = triton(limit_instances(tmp_path))
    gateway = serve(None, "--triton-url", server.grpc)
    with gateway.http() as http:
        assert http.get("/readyz").json() == {"status": "ready", "not_served": ["broken_member1"]}
        detail = http.get("/v1/models").json()["not_served"]["broken_member1"]
    assert "has not loaded broken_member1: " in detail
    strict = ("--engine", "triton", "--triton-url", server.grpc, "--exit-on-error", "true")
    assert refused(*strict, log_level="error") == f"error: {detail}"
    response = classify(gateway, RED, model="broken")
    assert "has not loaded broken_member1: " in problem(response, 503, "no-quorum")
    assert classify(gateway, RED, model="sound").json()["degraded"] is False
    server.stop()


def test_a_member_unloaded_at_run_time(triton: StartTriton, serve: Serve, repository: Path) -> None:
    server = triton(repository, "--", "--model-control-mode=explicit", "--load-model=*")
    gateway = serve(None, "--triton-url", server.grpc, "--min-members", "1")
    strict = serve(None, "--triton-url", server.grpc)
    with grpc.InferenceServerClient(server.grpc) as client, load(gateway, repository) as clients:
        clients.wait_for("whole")
        client.unload_model("pair_member1")
        clients.wait_for("degraded")
        until_ready(strict, False)
        with strict.http() as http:
            assert "not ready: pair_member1" in problem(http.get("/readyz"), 503, "no-quorum")
        assert "pair_member1: " in problem(classify(strict, RED), 503, "no-quorum")
        until_ready(gateway)
        client.load_model("pair_member1")
        until_ready(strict)
        clients.wait_for("whole")
    assert clients.answers["problem"] == 0
    server.stop()


def test_late_members_and_clients_that_leave_are_cancelled_at_triton(
    triton: StartTriton, serve: Serve, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    repository = limit_instances(write_repository(tmp_path / "models", "hangs", faults={1: HANGS}))
    server = triton(repository, "--", "--log-verbose=1", f"--log-file={log}")
    gateway = serve(None, "--triton-url", server.grpc, "--min-members", "1", "--deadline-ms", "5000")
    for cancelled in (1, 2):
        reply = classify(gateway, RED).json()
        assert reply["members"][1]["error"] == "no answer before the deadline"
        until_cancelled(log, cancelled)
    patient = serve(None, "--triton-url", server.grpc, "--min-members", "1", "--deadline-ms", "600000")
    with httpx.Client(base_url=patient.url, timeout=1, trust_env=False) as leaving:
        for cancelled in (3, 4):
            with pytest.raises(httpx.ReadTimeout):
                leaving.post("/v1/classify", files={"files": ("red.png", RED)})
            until_cancelled(log, cancelled)


def until_cancelled(log: Path, calls: int) -> None:
    """Wait until Triton has logged this number of cancelled calls."""
    for _ in range(6000):
        if log.read_text().count("Issuing cancellation") >= calls:
            return
        time.sleep(0.01)
    pytest.fail(f"fewer than {calls} calls were cancelled")
