"""A Service in front of gateways: what the kubelet and the EndpointSlice controller would do."""

import signal
import threading

import httpx

from tests.cluster.envoy import Envoy
from tests.integration.conftest import Server

PERIOD_S = 0.5
TIMEOUT_S = 60
FAILURES = 3
"""The readiness probe's; the chart's period is longer, and its timeout 5 s, which a busy machine exceeds."""


class Service:
    """Asks every gateway's `/readyz` in turn, and lets Envoy send requests to those that are ready."""

    def __init__(self, envoy: Envoy, cluster: str = "stable") -> None:
        """Begin without gateways; `cluster` is Envoy's."""
        self._envoy = envoy
        self._cluster = cluster
        self._servers: list[Server] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._probe)

    def add(self, *servers: Server) -> None:
        """Add gateways, and wait until all get requests."""
        with self._lock:
            self._servers += servers
            wanted = [server.url for server in self._servers]
        self._envoy.wait_for(self._cluster, wanted)

    def remove(self, server: Server) -> None:
        """Forget a gateway, as when its pod is gone, and wait until it gets no requests."""
        with self._lock:
            self._servers.remove(server)
            wanted = [server.url for server in self._servers]
        self._envoy.wait_for(self._cluster, wanted)

    def stop(self, server: Server) -> int:
        """Delete a gateway's pod: it is told to stop, and leaves the Service at the same moment.

        Returns:
            The exit status.
        """
        server.process.send_signal(signal.SIGTERM)
        self.remove(server)
        return server.process.wait(60)

    def __enter__(self) -> "Service":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _probe(self) -> None:
        sent: list[str] = []
        failures: dict[str, int] = {}
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            while not self._stop.wait(PERIOD_S):
                with self._lock:
                    urls = [server.url for server in self._servers]
                for url in urls:
                    failures[url] = 0 if is_ready(http, url) else failures.get(url, FAILURES) + 1
                ready = [url for url in urls if failures[url] < FAILURES]
                if ready != sent:
                    self._envoy.send_to(self._cluster, ready)
                    sent = ready


def is_ready(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False
