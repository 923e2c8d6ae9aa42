"""Starts real servers on free loopback ports and stops them again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

COSERVE = Path(sys.executable).with_name("coserve")


@dataclass
class Server:
    """A running `coserve serve`."""

    process: subprocess.Popen[str]
    url: str
    announcement: list[str]

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def stop(self) -> int:
        """Ask it to stop, wait until it has, and give its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Start servers; options as on the command line, settings as keywords."""
    servers = []

    def start(repository: Path, *options: str, **settings: object) -> Server:
        variables = {f"COSERVE_{name.upper()}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [COSERVE, "serve", "--repository", repository, "--port", "0", *options],
            stdout=subprocess.PIPE,
            text=True,
            # Nobody reads the access log, and a full pipe would stop the server.
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
