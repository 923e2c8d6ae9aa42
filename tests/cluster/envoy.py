"""Envoy, configured as a Gateway's controller would, with backends that change while it runs."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

TOOLS = Path(__file__).parents[2] / ".cluster"
ENVOY = TOOLS / "servers/envoy/_bin/envoy"
CLUSTERS = ("stable", "canary")
RETRIES = {
    "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
    "retriable_status_codes": [503],
    "num_retries": 3,
    # Not the host that has just failed: a lost one has the fewest requests, which attracts new ones.
    "retry_host_predicate": [
        {
            "name": "previous",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                ".PreviousHostsPredicate"
            },
        }
    ],
    # Of two hosts, it picks the lost one three times in four.
    "host_selection_retry_max_attempts": 20,
}
"""What docs/guides/serving/cluster.md recommends for pods that are killed."""


class Envoy:
    """A running Envoy that sends requests to the addresses in its files, and notices their changes."""

    def __init__(self, folder: Path, retries: Mapping[str, Any] | None = None) -> None:
        """Start it with `stable` alone, and no addresses; `retries` is a route's retry policy."""
        folder.mkdir()
        self._folder = folder
        self._retries = retries
        for cluster in CLUSTERS:
            self.send_to(cluster, [])
        self.weigh(stable=100)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._admin = f"http://127.0.0.1:{free_port()}"
        (folder / "envoy.json").write_text(json.dumps(self._bootstrap()))
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [ENVOY, "-c", folder / "envoy.json", "--concurrency", "1", "--use-dynamic-base-id"],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        self._wait(lambda http: http.get(f"{self._admin}/ready").is_success)

    def http(self) -> httpx.Client:
        """Return a client that asks through Envoy."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def send_to(self, cluster: str, urls: Iterable[str]) -> None:
        """Replace a cluster's addresses, as when a Service's EndpointSlice changes."""
        hosts = [httpx.URL(url) for url in urls]
        endpoints = [{"endpoint": {"address": _address(url.host, url.port or 80)}} for url in hosts]
        kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
        self._publish(f"{cluster}.json", kind, cluster_name=cluster, endpoints=[{"lb_endpoints": endpoints}])

    def weigh(self, **percent: int) -> None:
        """Divide the requests among the clusters, as an HTTPRoute's weights do."""
        weights = [{"name": name, "weight": percent.get(name, 0)} for name in CLUSTERS]
        action: dict[str, Any] = {"weighted_clusters": {"clusters": weights}, "timeout": "60s"}
        if self._retries:
            action["retry_policy"] = self._retries
        route = {"match": {"prefix": "/"}, "route": action}
        kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
        hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
        self._publish("routes.json", kind, name="routes", virtual_hosts=hosts)

    def wait_for(self, cluster: str, urls: Iterable[str]) -> None:
        """Wait until Envoy uses these addresses and no others."""
        wanted = {httpx.URL(url).netloc.decode() for url in urls}

        def uses(http: httpx.Client) -> bool:
            lines = http.get(f"{self._admin}/clusters").text.splitlines()
            parts = [line.split("::") for line in lines if line.startswith(f"{cluster}::127.")]
            return {part[1] for part in parts} == wanted

        self._wait(uses)

    def connections(self, cluster: str) -> int:
        """Return how many connections to a cluster have been opened so far."""
        with httpx.Client(trust_env=False, timeout=60) as http:
            text = http.get(f"{self._admin}/stats", params={"filter": f"{cluster}.upstream_cx_total$"}).text
        return int(text.rpartition(" ")[2])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def _wait(self, condition: Any) -> None:
        with httpx.Client(trust_env=False, timeout=60) as http:
            for _ in range(6000):
                assert self.process.poll() is None, (self._folder / "log").read_text()[-2000:]
                try:
                    if condition(http):
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.01)
        raise AssertionError((self._folder / "log").read_text()[-2000:])

    def _publish(self, file: str, kind: str, **resource: Any) -> None:
        version = str(time.monotonic_ns())
        text = json.dumps({"version_info": version, "resources": [{"@type": kind, **resource}]})
        written = self._folder / f".{file}"
        written.write_text(text)
        # Envoy watches for renamed files.
        written.rename(self._folder / file)

    def _source(self, name: str) -> dict[str, Any]:
        folder = {"path": str(self._folder)}
        return {
            "path_config_source": {"path": str(self._folder / name), "watched_directory": folder},
            "resource_api_version": "V3",
        }

    def _bootstrap(self) -> dict[str, Any]:
        clusters = [
            {
                "name": name,
                "type": "EDS",
                "connect_timeout": "1s",
                "lb_policy": "LEAST_REQUEST",
                "eds_cluster_config": {"eds_config": self._source(f"{name}.json")},
                # Its default of 3 retries at a time is too few when a pod is lost.
                "circuit_breakers": {"thresholds": [{"max_retries": 1024}]},
            }
            for name in CLUSTERS
        ]
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
            ".HttpConnectionManager",
            "stat_prefix": "http",
            "rds": {"route_config_name": "routes", "config_source": self._source("routes.json")},
            "http_filters": [
                {
                    "name": "router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                    },
                }
            ],
        }
        filters = [{"name": "http", "typed_config": manager}]
        url = httpx.URL(self.url)
        listener = {
            "name": "http",
            "address": _address(url.host, url.port or 0),
            "filter_chains": [{"filters": filters}],
        }
        return {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": _address("127.0.0.1", httpx.URL(self._admin).port or 0)},
            "static_resources": {"listeners": [listener], "clusters": clusters},
        }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
