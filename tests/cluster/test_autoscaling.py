"""The autoscalers' queries, which Prometheus evaluates over gateways under a load that rises and falls."""

import json
import math
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from tests.cluster.cases import rendered
from tests.cluster.chart import NAME, NAMESPACE, ROOT, TOOLS
from tests.cluster.envoy import free_port
from tests.compose.conftest import exported
from tests.integration.conftest import Serve, Server, serve, triton
from tests.integration.load import Load
from tests.server.onnx_repository import write_repository

__all__ = ["exported", "serve", "triton"]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not (TOOLS / "helm_python").exists(), reason="`make test` fetches Helm"),
]

PROMETHEUS = shutil.which("prometheus", path=f"{TOOLS / 'bin'}") or shutil.which("prometheus")
ADAPTER = yaml.safe_load((ROOT / "deploy/helm/prometheus-adapter.yaml").read_text())["rules"]["custom"]
MATCHERS = f'namespace="{NAMESPACE}",pod=~"pod-0|pod-1"'


def keda(case: str, name: str, kind: str) -> tuple[str, float]:
    """Return what KEDA's trigger is told: the query and the target, which is of the given type."""
    (trigger,) = rendered()[case]["ScaledObject", name]["spec"]["triggers"]
    assert trigger["metricType"] == kind
    return trigger["metadata"]["query"], float(trigger["metadata"]["threshold"])


def hpa(case: str) -> tuple[str, float]:
    """Return what an HPA asks prometheus-adapter for, filled in for two pods, and the target."""
    (metric,) = rendered()[case]["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = (rule for rule in ADAPTER if rule["name"]["as"] == metric["pods"]["metric"]["name"])
    assert metric["pods"]["target"]["type"] == "AverageValue"
    quantity = metric["pods"]["target"]["averageValue"]
    target = float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
    return adapter_query(rule), target


def adapter_query(rule: dict[str, Any]) -> str:
    """Return a rule's query as prometheus-adapter fills it in for two pods."""
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", MATCHERS).replace("<<.GroupBy>>", "pod")
    return str(query)


def desired(replicas: int, value: float, target: float) -> int:
    """Return the replicas that an HPA sets, by its documented formula, within the chart's limits."""
    scaling = yaml.safe_load((ROOT / "deploy/helm/coserve/values.yaml").read_text())["autoscaling"]
    wanted = replicas if abs(value / target - 1) <= 0.1 else math.ceil(replicas * value / target)
    return int(min(max(wanted, scaling["minReplicas"]), scaling["maxReplicas"]))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for longer than the minute over which the queries average."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the condition has not become true")


class Prometheus:
    """A running Prometheus that scrapes gateways as a ServiceMonitor would have it."""

    def __init__(self, folder: Path, servers: list[Server]) -> None:
        targets = [
            {
                "targets": [httpx.URL(server.url).netloc.decode()],
                "labels": {"namespace": NAMESPACE, "service": NAME, "pod": f"pod-{index}"},
            }
            for index, server in enumerate(servers)
        ]
        config = {"scrape_configs": [{"job_name": "x", "scrape_interval": "5s", "static_configs": targets}]}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        address = f"127.0.0.1:{free_port()}"
        self._http = httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=60)
        assert PROMETHEUS is not None
        self._process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=error",
            ]
        )
        wait_until(self._is_ready)

    def ask(self, query: str) -> dict[str, float]:
        """Return the value for each pod, or of all under an empty name."""
        answer = self._http.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", answer
        return {one["metric"].get("pod", ""): float(one["value"][1]) for one in answer["data"]["result"]}

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._http.close()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None
        try:
            return self._http.get("/-/ready").is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def servers(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> list[Server]:
    # Large enough that a batch takes longer than everything around it.
    folder = write_repository(
        tmp_path_factory.mktemp("models") / "repository", channels=64, depth=4, size=32, max_batch_size=2
    )
    return [serve(folder, deadline_ms=60_000) for _ in range(2)]


@pytest.fixture(scope="module")
def prometheus(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), servers)
    yield started
    started.stop()


def test_the_replicas_follow_the_load(servers: list[Server], prometheus: Prometheus) -> None:
    share_query, share_target = keda("keda queue", NAME, "Value")
    requests_query, requests_target = keda("keda requests", NAME, "AverageValue")
    pods_share_query, pods_share_target = hpa("queue")
    pods_requests_query, pods_requests_target = hpa("requests")
    assert (pods_share_target, pods_requests_target) == (share_target, requests_target)

    def by_share(replicas: int) -> int:
        (value,) = prometheus.ask(share_query).values()
        return desired(replicas, value, share_target)

    def by_requests(replicas: int) -> int:
        (value,) = prometheus.ask(requests_query).values()
        return desired(replicas, value / replicas, requests_target)

    wait_until(lambda: len(prometheus.ask(pods_share_query)) == 2)
    assert prometheus.ask(pods_share_query) == prometheus.ask(pods_requests_query) == {"pod-0": 0, "pod-1": 0}
    assert (by_share(4), by_requests(4)) == (2, 2)
    with Load(servers[0], clients=1):
        wait_until(lambda: prometheus.ask(pods_share_query)["pod-0"] > 0)
        wait_until(lambda: prometheus.ask(pods_requests_query)["pod-0"] > 0)
        assert by_requests(2) == 2
        assert prometheus.ask(pods_share_query)["pod-1"] == 0
    with Load(servers[0], clients=16), Load(servers[1], clients=16):
        wait_until(lambda: by_share(2) > 2 and by_requests(2) > 2)
        assert by_share(9) == 10
        wait_until(lambda: min(prometheus.ask(pods_share_query).values()) > share_target)
        wait_until(lambda: min(prometheus.ask(pods_requests_query).values()) > requests_target)
        # However many gateways there are now, as many as these requests need.
        assert by_requests(3) in (4, 3)
    wait_until(lambda: (by_share(5), by_requests(5)) == (2, 2))


def test_the_queries_name_metrics_that_are_exported(exported: set[str]) -> None:
    queries = [
        keda("keda queue", NAME, "Value")[0],
        keda("keda requests", NAME, "AverageValue")[0],
        keda("triton scales", f"{NAME}-triton", "Value")[0],
        *map(adapter_query, ADAPTER),
    ]
    for query in queries:
        promql_parser.parse(query)
        assert set(re.findall(r"\b(?:coserve|nv)_\w+", query)) <= exported
