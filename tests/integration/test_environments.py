"""`coserve serve` where nothing around it is as usual: one start for many oddities."""

import fcntl
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import COSERVE
from tests.integration.gateway import RED
from tests.server.onnx_repository import write_repository

LAUNCHER = Path(__file__).with_name("odd_process.py")


@contextmanager
def served(
    repository: Path, oddities: list[str], variables: dict[str, str | None], **streams: Any
) -> Iterator[httpx.Client]:
    """Start a server in such a process, wait until it is ready, and stop it; variables of None are unset."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **variables}
    command = [COSERVE, "serve", "--repository", repository, "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, LAUNCHER, *oddities, "--", *command],
        env={name: value for name, value in environment.items() if value is not None},
        **streams,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            while process.poll() is None:
                try:
                    http.get("/readyz").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            for number in range(3):
                leads_to = Path(f"/proc/{process.pid}/fd/{number}").readlink()
                assert str(leads_to).startswith(("/", "pipe:")), "what writes there writes to a client"
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    assert status == 0


def classify(http: httpx.Client, model: str = "pair") -> None:
    answer = http.post("/v1/classify", files={"files": ("red.png", RED)}, params={"model": model})
    assert answer.status_code == 200, answer.text


def lines(log: Path) -> list[str]:
    """Return the log without the access log; no line may be a traceback's."""
    text = log.read_text("utf-8", "backslashreplace")
    assert "Traceback" not in text
    return [line for line in text.splitlines() if not line.startswith("INFO:     POST")]


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="it is Linux's x86-64")
def test_a_sandbox_that_forbids_and_hides(tmp_path: Path) -> None:
    oddities = ["forbidden", "obedient", "closed"] + ["hidden"] * (os.geteuid() == 0)
    repository = write_repository(tmp_path / "models")
    for name in ("lost+found", "secret"):
        (repository / name).mkdir(mode=0)
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE"), "/nowhere")
    variables = nowhere | {"TZ": "Mars/Olympus", "LANG": None, "LC_ALL": "xx_YY.none", "USER": None}
    log = tmp_path / "log"
    with log.open("w") as file, served(repository, oddities, variables, stderr=file) as http:
        classify(http)
        assert http.get("/readyz").json() == {"status": "ready", "not_served": ["secret"]}
        assert http.get("/metrics").status_code == 200
    text = "\n".join(lines(log))
    assert "secret is not served: " in text
    assert "folders that are not models: lost+found (Permission denied)" in text


def test_variables_of_others(tmp_path: Path) -> None:
    variables: dict[str, str | None] = {
        "COSERVE_PORT": "tcp://10.96.12.7:8000",
        "COSERVE_SERVICE_HOST": "10.96.12.7",
        "COSERVE_PORT_8000_TCP_PROTO": "tcp",
        "COSERVE_MAX_IMAGE": "1",
        "http_proxy": "nonsense://x",
        "https_proxy": ":::",
        "ALL_PROXY": "socks://127.0.0.1:1080/",
        "SSL_CERT_DIR": "/nowhere",
        "WEB_CONCURRENCY": "many",
        "UVICORN_PORT": "many",
        "OMP_NUM_THREADS": "many",
        "MALLOC_ARENA_MAX": "many",
        "PYTHONOPTIMIZE": "2",
        "PYTHONIOENCODING": "ascii",
    }
    repository = write_repository(tmp_path / "models", "café")
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        (tmp_path / "out").open("w") as out,
        served(repository, [], variables, stderr=file, stdout=out) as http,
    ):
        classify(http, "café")
    ignored = "COSERVE_PORT, COSERVE_PORT_8000_TCP_PROTO, COSERVE_SERVICE_HOST"
    assert [line for line in lines(log) if line.startswith("WARNING")] == [
        f"WARNING:     ignored, since Kubernetes or Docker sets them for a service: {ignored} "
        "(enableServiceLinks: false turns them off)",
        "WARNING:     COSERVE_MAX_IMAGE: no setting has this name; the nearest is COSERVE_MAX_IMAGES",
    ]
    assert "  caf\\xe9: 2 members" in (tmp_path / "out").read_text()


def test_a_locale_without_unicode_and_a_full_disk(tmp_path: Path) -> None:
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": None}
    repository = write_repository(tmp_path / "models", "café")
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        Path("/dev/full").open("w") as full,
        served(repository, [], variables, stderr=file, stdout=full) as http,
    ):
        classify(http, "café")
    assert "WARNING:     standard output cannot be written; serving all the same" in lines(log)


def test_pipes_that_nobody_reads(tmp_path: Path) -> None:
    """A full pipe must not stop the server; what was dropped is counted once somebody reads."""
    repository = write_repository(tmp_path)
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, b"x" * size)
    with served(repository, [], {}, stdout=writer, stderr=writer) as http:
        for _ in range(5):
            classify(http)
        assert os.read(reader, size) == b"x" * size
        classify(http)
        heard = ""
        while "POST" not in heard:
            heard += os.read(reader, size).decode()
    os.close(writer)
    os.close(reader)
    dropped = "lines of the log were dropped: nobody read standard error"
    assert f"{dropped}\nINFO:     POST /v1/classify 200" in heard
