"""Starts real servers on free loopback ports and stops them again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

COSERVE = Path(sys.executable).with_name("coserve")


@dataclass
class Server:
    """A running `coserve serve`."""

    process: subprocess.Popen[str]
    url: str
    announcement: list[str]

    @property
    def grpc(self) -> str:
        """`host:port` of gRPC, for servers with a `grpc_port`."""
        (line,) = (line for line in self.announcement if line.startswith("  gRPC at "))
        return line.removeprefix("  gRPC at ")

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def stop(self) -> int:
        """Stop the server with SIGTERM, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Start servers with options of the command line; without a repository, over Triton.

    `log` receives a server's standard error.
    """
    servers = []

    def start(
        repository: Path | None, *options: str, log: IO[str] | None = None, **settings: object
    ) -> Server:
        source = ["--repository", repository] if repository else ["--engine", "triton"]
        variables = {f"COSERVE_{name.upper()}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [COSERVE, "serve", *source, "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Nobody reads the access log, and a full pipe would block the server.
            env=os.environ | {"COSERVE_LOG_LEVEL": "error"} | variables,
        )
        assert process.stdout is not None
        announcement = []
        for line in process.stdout:
            announcement.append(line.rstrip())
            if line.lstrip().startswith("try:"):
                break
        assert announcement, f"the server ended with status {process.wait(60)}"
        server = Server(process, announcement[0].split()[2], announcement)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
        assert server.process.stdout is not None
        server.process.stdout.close()


@pytest.fixture(scope="module")
def error_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file for a server's standard error."""
    return tmp_path_factory.mktemp("log") / "errors"


@dataclass
class Triton:
    """A running `coserve triton`; addresses are `host:port`."""

    process: subprocess.Popen[str]
    pid: int
    http: str
    grpc: str
    metrics: str
    models: list[dict[str, Any]]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal such as SIGKILL or SIGSTOP to Triton's own process, not to the launcher."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Stop the launcher, even if its server hangs, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


StartTriton = Callable[..., Triton]


@pytest.fixture(scope="module")
def triton() -> Iterator[StartTriton]:
    """Start Triton servers for a repository, with options of `coserve triton`."""
    if sys.version_info >= (3, 13):
        pytest.skip("nvidia-pytriton needs numpy 1, which this Python does not have")
    servers = []

    def start(repository: Path, *options: str) -> Triton:
        process = subprocess.Popen(
            [COSERVE, "triton", "--repository", repository, "--json", *options],
            stdout=subprocess.PIPE,
            text=True,
            # ONNX Runtime in the tests' environment does not support GPUs.
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.communicate(timeout=60)
            raise AssertionError(f"Triton did not start: status {process.returncode}")
        server = Triton(process, **json.loads(line))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
        assert server.process.stdout is not None
        server.process.stdout.close()
