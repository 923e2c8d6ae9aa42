"""Several workers under load: killed, leaving, drained; and starts that fail."""

import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from coserve_server.workers.worker import BEAT_S
from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify, refused, until_ready
from tests.integration.load import Load, until
from tests.integration.test_drain import leaves
from tests.server.onnx_repository import write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"), "pair")


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--workers", "2", drain_delay_ms=2000)


def workers(server: Server) -> list[psutil.Process]:
    """Return the workers, the oldest first."""
    return sorted(psutil.Process(server.process.pid).children(), key=lambda one: one.create_time())


def connections(process: psutil.Process) -> int:
    """Return how many clients' connections a worker has."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))


def metric(server: Server, name: str) -> float:
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return float(next((line.split()[-1] for line in lines if line.startswith(f"{name} ")), 0))


def until_replaced(server: Server, count: int) -> None:
    until(lambda: metric(server, "coserve_worker_replacements_total") == count)
    assert metric(server, "coserve_workers_ready") == metric(server, "coserve_workers") == 2


def until_idle(server: Server) -> None:
    """Wait until no client is connected: a worker notices a closed connection a little later."""
    until(lambda: not any(connections(worker) for worker in workers(server)))


def test_connections_are_divided_evenly(server: Server) -> None:
    until_idle(server)
    time.sleep(BEAT_S + 1)  # The parent asks each worker for its count that often.
    with Load(server, clients=8) as load:
        assert [connections(worker) for worker in workers(server)] == [4, 4]
    assert load.failures == []


def test_a_terminals_interrupt_is_the_parents(server: Server) -> None:
    """Ctrl-C goes to all processes of a group; the parent stops the workers in order."""
    groups = [os.getpgid(worker.pid) for worker in workers(server)]
    assert os.getpgid(server.process.pid) not in groups


def test_a_killed_worker_takes_its_own_connections_alone(server: Server) -> None:
    before = metric(server, "coserve_worker_replacements_total")
    until_idle(server)
    with Load(server, clients=8) as load:
        first, second = workers(server)
        counted = answered(server)
        until(lambda: connections(first) + connections(second) == 8)
        lost = connections(second)
        assert lost > 0
        second.kill()
        until_replaced(server, round(before) + 1)
        # Clients with connections that are kept alive come to the new worker, too.
        until(lambda: connections(workers(server)[1]) > 0)
    assert len(load.failures) == lost
    # Their connections ended, before, after or within an answer.
    ends = ("ReadError(", "WriteError(", "RemoteProtocolError(")
    assert [failure for failure in load.failures if not failure.startswith(ends)] == []
    # What the killed worker has counted counts, except in its last moment.
    assert counted <= answered(server) <= len(load.answers) + counted
    assert workers(server)[0] == first


def test_connections_on_their_way_to_a_killed_worker_go_to_another(server: Server) -> None:
    before = metric(server, "coserve_worker_replacements_total")
    workers(server)[1].kill()
    for _ in range(30):
        with server.http() as http:
            assert http.get("/healthz").status_code == 200
    until_replaced(server, round(before) + 1)


def test_workers_without_file_descriptors_leave_connections_to_others_or_refuse_them(
    serve: Serve, repository: Path
) -> None:
    # Its own server, since a worker gets no connection for a second after it missed one.
    server = serve(repository, "--workers", "2")
    refused = 'coserve_connections_refused_total{reason="overloaded"}'
    first, second = workers(server)
    limits = first.rlimit(psutil.RLIMIT_NOFILE)

    def limit(worker: psutil.Process) -> None:
        """Let a worker open no more files."""
        until(lambda: connections(worker) == 0)
        worker.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))

    try:
        limit(first)
        for _ in range(10):
            assert classify(server, RED).status_code == 200
        assert metric(server, refused) == 0
        limit(second)
        late = classify(server, RED)
        assert late.status_code == 503
        assert "no worker takes any more connections" in late.json()["detail"]
    finally:
        for worker in (first, second):
            worker.rlimit(psutil.RLIMIT_NOFILE, limits)
    until(lambda: classify(server, RED).status_code == 200)
    assert metric(server, refused) >= 1


def answered(server: Server) -> float:
    """Return how many requests have been classified."""
    return metric(server, 'coserve_request_duration_seconds_count{model="pair"}')


def test_a_worker_that_gets_sigterm_is_replaced_without_a_failure(server: Server) -> None:
    before = metric(server, "coserve_worker_replacements_total")
    counted = answered(server)
    with Load(server) as load:
        workers(server)[0].terminate()
        until_replaced(server, round(before) + 1)
        until(lambda: len(workers(server)) == 2)
    assert load.failures == []
    assert answered(server) == counted + len(load.answers)


def test_drained_as_one(server: Server) -> None:
    ended = workers(server)
    with Load(server, enough=leaves) as load:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert load.failures == []
    assert not any(worker.is_running() for worker in ended)


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_signal_to_all_processes_leaves_all_serving_until_the_end(
    serve: Serve, repository: Path, *, parent_first: bool
) -> None:
    """As systemd sends it (KillMode=control-group), in any order."""
    server = serve(repository, workers=2, drain_delay_ms=3_600_000)
    ended = workers(server)
    processes = [psutil.Process(server.process.pid), *ended]
    with Load(server, enough=leaves) as load:
        for process in processes if parent_first else processes[::-1]:
            process.terminate()
            # The others have heard of it by the next.
            time.sleep(0.1)
        until_ready(server, ready=False)
        for _ in range(6):
            with server.http() as http:
                assert "the server is stopping" in http.get("/readyz").json()["detail"]
            assert classify(server, RED).status_code == 200
    assert load.failures == []
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(ended, 60)[1] == []


def test_no_worker_outlives_the_parent(serve: Serve, repository: Path) -> None:
    server = serve(repository, workers=2, drain_delay_ms=3_600_000)
    left = workers(server)
    assert len(left) == 2
    server.process.kill()
    assert psutil.wait_procs(left, 60)[1] == []


def test_a_replacement_without_an_ensemble_that_others_serve_is_a_fault(serve: Serve, tmp_path: Path) -> None:
    folder = write_repository(tmp_path, "pair")
    write_repository(folder, "single", members=1)
    server = serve(folder, workers=2, repository_poll_ms=100)
    ready = 'coserve_model_ready{model="single",version="1"}'
    network = folder / "single_member0" / "1" / "model.onnx"
    sound = network.read_bytes()
    network.write_bytes(b"no network")
    until(lambda: metric(server, 'coserve_model_load_error{model="single"}') == 1)
    # The old version stays in both.
    assert metric(server, ready) == 1
    until_ready(server)
    workers(server)[1].kill()
    until_replaced(server, 1)
    until_ready(server, ready=False)
    for _ in range(4):
        with server.http() as http:
            assert "worker 2: single is not served, but by other workers: " in http.get("/readyz").text
    assert metric(server, ready) == 0
    network.write_bytes(sound)
    until_ready(server)
    assert metric(server, ready) == 1


def test_a_server_stays_ready_while_one_worker_after_another_loads_a_repaired_ensemble(
    serve: Serve, tmp_path: Path
) -> None:
    folder = write_repository(tmp_path, "pair", members=1)
    write_repository(folder, "broken", members=8)
    network = folder / "broken_member0" / "1" / "model.onnx"
    sound = network.read_bytes()
    network.write_bytes(b"no network")
    server = serve(folder, workers=2, repository_poll_ms=100)
    until_ready(server)
    network.write_bytes(sound)
    faults = []

    def is_served() -> bool:
        with server.http() as http:
            faults.extend(http.get("/readyz").json().get("detail", "") for _ in range(20))
        return metric(server, 'coserve_model_reloads_total{model="broken",outcome="served"}') == 1 and all(
            classify(server, RED, model="broken").status_code == 200 for _ in range(6)
        )

    until(is_served)
    assert set(faults) == {""}


def test_a_start_that_fails_is_told_once(tmp_path: Path, repository: Path) -> None:
    broken = write_repository(tmp_path, "pair", members=1)
    (broken / "pair_member0" / "1" / "model.onnx").write_bytes(b"no network")
    message = refused("--repository", broken, "--port", "0", workers=2, log_level="error")
    assert message.startswith("error: ")
    assert "pair_member0" in message
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options in ({"port": port}, {"port": 0, "grpc_port": port}):
            message = refused("--repository", repository, workers=2, **options)
            assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in message
