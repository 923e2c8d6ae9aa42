"""Envoy in front of real gateways that come and go while clients send requests."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.envoy import ENVOY, RETRIES, Envoy
from tests.cluster.service import Service
from tests.integration.conftest import Serve, Server, serve
from tests.integration.load import CLIENTS, Load, check_versions_are_not_mixed, logits_by_version, until
from tests.server.onnx_repository import add_version, write_repository

__all__ = ["serve"]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not ENVOY.exists(), reason="`make test-cluster` fetches Envoy"),
]

UPGRADES_S = 120
PATIENT = {"deadline_ms": 60_000, "min_upload_rate": 0}
"""Settings that a slow machine, and so slow clients and a slow Envoy, do not turn into failures."""
DRAINING = {"drain_delay_ms": 10_000} | PATIENT
"""The chart's own delay, for whatever a cluster takes to tell its proxies."""
StartEnvoy = Callable[..., Envoy]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture
def start_envoy(tmp_path: Path) -> Iterator[StartEnvoy]:
    started = []

    def start(retries: Mapping[str, Any] | None = None) -> Envoy:
        envoy = Envoy(tmp_path / "envoy", retries)
        started.append(envoy)
        return envoy

    yield start
    for envoy in started:
        envoy.stop()


def served(server: Server) -> float:
    """Return how many classifications a gateway has answered with success."""
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("coserve_requests_total{") and 'status="200"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in counts if 'route="/v1/classify"' in line)


def newest(server: Server) -> str:
    """Return the newest version that a gateway serves."""
    with server.http() as http:
        return str(http.get("/v2/models/pair").json()["versions"][-1])


def versions(load: Load) -> set[str]:
    """Return the versions of the last answers: twice as many as there are clients."""
    return {answer["version"] for answer in load.answers[-2 * CLIENTS :]}


def test_a_rolling_update_loses_nothing_without_retries(
    serve: Serve, repository: Path, start_envoy: StartEnvoy
) -> None:
    envoy = start_envoy()
    old = [serve(repository, **DRAINING) for _ in range(2)]
    with Service(envoy) as service:
        service.add(*old)
        with Load(envoy) as load:
            for server in old:
                new = serve(repository, **DRAINING)
                service.add(new)
                load.wait_for_more()
                assert service.stop(server) == 0
                assert served(new) > 0
            load.wait_for_more()
    assert load.failures == []


def test_upgrades_of_ensemble_and_gateways_and_back_lose_nothing_for_two_minutes(
    serve: Serve, repository: Path, start_envoy: StartEnvoy, tmp_path: Path
) -> None:
    """The gateways share a volume, and go back as docs/guides/serving/reload.md says."""
    volume = tmp_path / "volume"
    shutil.copytree(repository, volume)
    envoy = start_envoy()
    gateways = [serve(volume, **DRAINING) for _ in range(2)]

    def wait_for(version: str) -> None:
        until(lambda: {newest(server) for server in gateways} == {version})
        until(lambda: versions(load) == {version})

    def replace_gateways() -> None:
        for old in gateways[:]:
            gateways.append(serve(volume, **DRAINING))
            service.add(gateways[-1])
            gateways.remove(old)
            assert service.stop(old) == 0

    with Service(envoy) as service:
        service.add(*gateways)
        with Load(envoy) as load:
            end = time.monotonic() + UPGRADES_S
            version = 1
            while version == 1 or time.monotonic() < end:
                version += 1
                add_version(volume, "pair", version, keep=True)
                wait_for(str(version))
                replace_gateways()
                shutil.rmtree(volume / f"pair/{version}")
                (volume / "pair/1/config.pbtxt").rename(volume / "pair/config.pbtxt")
                wait_for("1")
                replace_gateways()
    assert load.failures == []
    known = logits_by_version(volume, range(1, version + 1))
    assert check_versions_are_not_mixed(load.answers, known) == set(known)


def test_adding_and_removing_gateways_moves_the_load(
    serve: Serve, repository: Path, start_envoy: StartEnvoy
) -> None:
    envoy = start_envoy()
    first, second, third = (serve(repository, **PATIENT) for _ in range(3))
    with Service(envoy) as service:
        service.add(first)
        with Load(envoy) as load:
            assert (served(second), served(third)) == (0, 0)
            service.add(second, third)
            load.wait_for_more()
            assert min(served(second), served(third)) > 0
            service.remove(first)
            # Requests that it had already.
            load.wait_for_more()
            before = served(first)
            load.wait_for_more()
            assert served(first) == before
    assert load.failures == []


def test_connections_that_end_at_an_age_lose_nothing_without_retries(
    serve: Serve, repository: Path, start_envoy: StartEnvoy
) -> None:
    envoy = start_envoy()
    with Service(envoy) as service:
        service.add(*(serve(repository, max_connection_age_ms=50, **PATIENT) for _ in range(2)))
        with Load(envoy) as load:
            for _ in range(20):
                load.wait_for_more()
            assert envoy.connections("stable") > 10
    assert load.failures == []


def test_a_killed_gateway_loses_nothing_with_retries(
    serve: Serve, repository: Path, start_envoy: StartEnvoy
) -> None:
    envoy = start_envoy(RETRIES)
    with Service(envoy) as service:
        first, second = (serve(repository, **PATIENT) for _ in range(2))
        service.add(first, second)
        with Load(envoy) as load:
            second.process.kill()
            second.process.wait(60)
            load.wait_for_more()
            service.remove(second)
            service.add(serve(repository, **PATIENT))
            load.wait_for_more()
    assert load.failures == []


def test_a_canary_gets_its_share_and_all_or_nothing_in_the_end(
    serve: Serve, repository: Path, start_envoy: StartEnvoy, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(repository, newer)
    add_version(newer, "pair", 2)
    envoy = start_envoy()
    with Service(envoy) as stable, Service(envoy, "canary") as canary:
        stable.add(serve(repository, **PATIENT))
        canary.add(serve(newer, **PATIENT))
        with Load(envoy) as load:
            assert versions(load) == {"1"}
            envoy.weigh(stable=75, canary=25)
            until(lambda: "2" in versions(load))
            start = len(load.answers)
            until(lambda: len(load.answers) >= start + 600 or bool(load.failures))
            shares = [answer["version"] for answer in load.answers[start : start + 600]]
            # 150 and six standard deviations of the binomial distribution.
            assert 86 <= shares.count("2") <= 214
            for weights, version in (({"canary": 100}, "2"), ({"stable": 100}, "1")):
                envoy.weigh(**weights)
                until(lambda version=version: versions(load) == {version})
    assert load.failures == []
    check_versions_are_not_mixed(load.answers, logits_by_version(newer, range(1, 3)))
