"""The system in containers, started by each installed version of Compose: `make test-compose`.

It classifies a photograph that comes with Matplotlib, and those in the folder COSERVE_PHOTOS.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import matplotlib.cbook
import pytest
import yaml

from coserve_client import Client, UnavailableError
from tests.compose.engine import (
    GATEWAY,
    OPENVINO,
    STAND_INS,
    Compose,
    docker,
    inspect,
    installed,
    prepare_images,
)
from tests.compose.test_files import expressions

pytestmark = pytest.mark.compose

GATEWAY_URL, EMBEDDED_URL, PROMETHEUS_URL = (f"http://127.0.0.1:{port}" for port in (18000, 18010, 19090))
MODEL = "wide_resnet16_4_s2"


def photographs() -> list[Path]:
    own = Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    folder = os.environ.get("COSERVE_PHOTOS")
    return [own, *(sorted(Path(folder).iterdir()) if folder else [])]


def until(condition: Callable[[], bool], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def status(url: str) -> int:
    """Return the status of a response; 0 if there is none."""
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def classify(url: str) -> list[dict[str, float]]:
    """Return each photograph's probabilities by label."""
    with Client(url) as client:
        reply = client.classify(photographs(), top_k=10)
    assert not reply.degraded
    return [{p.label: p.probability for p in result.predictions} for result in reply.results]


@pytest.fixture(scope="module", autouse=True)
def images() -> Iterator[None]:
    with prepare_images():
        yield


@pytest.fixture(scope="module", params=installed())
def system(
    request: pytest.FixtureRequest, images: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Compose]:
    """Triton and the gateway, built and started by `docker compose up`."""
    ports = {"PORT": "18000", "EMBEDDED_PORT": "18010", "PROMETHEUS_PORT": "19090"}
    variables = {f"COSERVE_{name}": port for name, port in ports.items()} | {"COSERVE_IMAGE": GATEWAY}
    compose = Compose(request.param, tmp_path_factory.mktemp("checkout"), variables)
    try:
        compose("up", "--detach", "--build")
        until(lambda: status(f"{GATEWAY_URL}/readyz") == 200, "the gateway is ready")
        yield compose
    finally:
        if request.session.testsfailed:
            print(compose("logs", "--tail", "50"))
        compose(*compose.PROFILES, "down", "--volumes", "--remove-orphans")
        for kind in ("container", "network", "volume"):
            label = f"label=com.docker.compose.project={compose.project}"
            assert not docker(kind, "ls", "--quiet", "--filter", label, *(["--all"] * (kind == "container")))
        docker("image", "rm", "--force", GATEWAY, OPENVINO)


def test_the_gateway_starts_once_triton_is_healthy(system: Compose) -> None:
    checks = system.state("triton")["Health"]["Log"]
    healthy = min(check["End"] for check in checks if check["ExitCode"] == 0)
    assert system.state("gateway")["StartedAt"] > healthy[:19]
    until(lambda: system.state("gateway")["Health"]["Status"] == "healthy", "healthy")


def test_gpus_are_reserved_by_the_second_file(system: Compose) -> None:
    files = ("--file", "docker-compose.yml", "--file", "docker-compose.gpu.yml")
    services = yaml.safe_load(system(*files, "--profile", "embedded", "config"))["services"]
    for name in ("triton", "embedded"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        assert device["count"] in ("all", -1)
    assert "deploy" not in services["gateway"]
    assert services["embedded"]["image"] != services["gateway"]["image"]
    assert services["embedded"]["environment"]["COSERVE_GPUS"] == "0"


def test_only_loopback_is_published(system: Compose) -> None:
    ports = inspect(system.container("gateway"))["NetworkSettings"]["Ports"]
    assert ports == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18000"}]}
    assert not any(inspect(system.container("triton"))["NetworkSettings"]["Ports"].values())


def test_the_gateway_can_do_little_in_its_container(system: Compose) -> None:
    container = system.container("gateway")
    assert docker("exec", container, "id", "-u").strip() == "10001"
    for path in ("/opt/coserve/x", "/run/coserve/x", "/x"):
        with pytest.raises(subprocess.CalledProcessError):
            docker("exec", "--user", "0", container, "touch", path)
    capabilities = docker("exec", "--user", "0", container, "grep", "CapEff", "/proc/self/status")
    assert int(capabilities.split()[1], 16) == 0


def test_photographs_are_classified_alike_by_both_engines(system: Compose) -> None:
    over_triton = classify(GATEWAY_URL)
    system("up", "--detach", "embedded")
    until(lambda: status(f"{EMBEDDED_URL}/readyz") == 200, "the embedded gateway is ready")
    assert httpx.get(f"{EMBEDDED_URL}/v2", trust_env=False).status_code == 200
    for one, other in zip(over_triton, classify(EMBEDDED_URL), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    with Client(GATEWAY_URL) as client:
        reply = client.classify(photographs()[0])
    assert [member.device for member in reply.members] == ["triton triton:8001"] * 2
    assert reply.overlap > 1


def test_the_embedded_gateway_may_run_openvino(system: Compose) -> None:
    system("rm", "--force", "--stop", "embedded")
    named = {"IMAGE": OPENVINO, "EXTRAS": "openvino", "EMBEDDED_ENGINE": "openvino", "MEMBER_THREADS": "1"}
    with system.given(**{f"COSERVE_{name}": value for name, value in named.items()}):
        system("up", "--detach", "--build", "embedded")
    until(lambda: status(f"{EMBEDDED_URL}/readyz") == 200, "the embedded gateway is ready")
    assert "openvino" in docker("exec", system.container("embedded"), "env")
    for one, other in zip(classify(GATEWAY_URL), classify(EMBEDDED_URL), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_the_gateway_degrades_without_triton_and_recovers(system: Compose) -> None:
    started = system.state("gateway")["StartedAt"]
    docker("kill", system.container("triton"))
    until(lambda: status(f"{GATEWAY_URL}/readyz") == 503, "not ready")
    assert status(f"{GATEWAY_URL}/healthz") == 200
    with Client(GATEWAY_URL, retries=0) as client, pytest.raises(UnavailableError) as failure:
        client.classify(photographs()[0])
    assert failure.value.status == 503
    until(lambda: system.state("gateway")["Health"]["Status"] == "unhealthy", "unhealthy")
    system("start", "triton")
    until(lambda: status(f"{GATEWAY_URL}/readyz") == 200, "ready again")
    classify(GATEWAY_URL)
    assert system.state("gateway")["StartedAt"] == started, "the gateway itself was not restarted"


@pytest.mark.skipif(STAND_INS not in os.environ, reason="only processes of an engine of its own can be seen")
def test_a_crashed_triton_comes_back_by_itself(system: Compose) -> None:
    os.kill(system.state("triton")["Pid"], signal.SIGKILL)
    until(lambda: inspect(system.container("triton"))["RestartCount"] == 1, "restarted")
    until(lambda: status(f"{GATEWAY_URL}/readyz") == 200, "ready again")
    classify(GATEWAY_URL)


def test_prometheus_sees_both_and_every_panel_has_data(system: Compose) -> None:
    system("--profile", "observability", "up", "--detach", "prometheus")
    until(lambda: status(f"{PROMETHEUS_URL}/-/ready") == 200, "Prometheus is ready")

    def ask(path: str, **query: str) -> Any:
        answer = httpx.get(f"{PROMETHEUS_URL}/api/v1/{path}", params=query, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def up() -> set[str]:
        targets = ask("targets", state="active")["activeTargets"]
        return {t["labels"].get("service", t["labels"]["job"]) for t in targets if t["health"] == "up"}

    until(lambda: up() == {"gateway", "embedded", "triton", "prometheus"}, "all targets are up")
    wanted = [
        expression.replace("$__rate_interval", "1m").replace("$model", ".*")
        for expression in expressions()
        # Triton has no GPU here, and nothing failed meanwhile.
        if "nv_gpu" not in expression and "member_errors" not in expression
    ]

    def empty() -> list[str]:
        classify(GATEWAY_URL)
        assert httpx.post(f"{GATEWAY_URL}/v1/classify", content=b"", trust_env=False).status_code >= 400
        return [expression for expression in wanted if not ask("query", query=expression)["result"]]

    until(lambda: not empty(), f"no data: {empty()}")


def test_perf_analyzer_measures_both_services(system: Compose) -> None:
    options = {"CONCURRENCY": "1", "INTERVAL_MS": "500", "STABILITY": "1000"}
    printed = system("run", "--rm", *(f"-e{k}={v}" for k, v in options.items()), "bench")
    assert printed.count("Inferences/Second vs. Client p95 Batch Latency") == 2


def test_the_image_has_only_what_it_needs(system: Compose) -> None:
    image = inspect(GATEWAY)
    assert image["Size"] < 600e6
    assert image["Config"]["User"] == "10001:10001"
    assert "healthz" in str(image["Config"]["Healthcheck"])
    assert image["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    shell = ("run", "--rm", "--entrypoint", "sh", GATEWAY, "-c")
    assert not docker(*shell, "command -v gcc cc c++ ld make || true")
    listed = "import importlib.metadata as m; print(*[d.name for d in m.distributions()])"
    packages = docker("run", "--rm", "--entrypoint", "python", GATEWAY, "-c", listed).lower().split()
    assert "onnxruntime" in packages
    assert not {"torch", "lightning", "onnx", "pip"} & set(packages)
    find = "find / -xdev -path /proc -prune -o -name pip.conf -print -o -path /source -print"
    left = docker("run", "--rm", "--user", "0", "--entrypoint", "sh", GATEWAY, "-c", find)
    assert not left


def test_the_image_refuses_other_machines_by_default(system: Compose) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        docker("run", "--rm", "--env", "COSERVE_REPOSITORY=/tmp", GATEWAY)
    assert "api_keys_file" in refusal.value.stderr


def test_stopping_is_graceful(system: Compose) -> None:
    containers = {name: system.container(name) for name in ("gateway", "triton", "embedded")}
    system(*system.PROFILES, "stop")
    assert {name: inspect(one)["State"]["ExitCode"] for name, one in containers.items()} == dict.fromkeys(
        containers, 0
    )
