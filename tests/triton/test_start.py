"""What becomes of a Triton that gives up while it loads; scripts stand in, since no test can provoke that."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from coserve_server.errors import TritonError
from coserve_triton import server
from coserve_triton.server import LOCK_LOST, STARTS, Ports, run_triton

pytest.importorskip("pytriton", reason="nvidia-pytriton is not installed")

GIVES_UP = f"import os; print('  what():  {LOCK_LOST}', flush=True); os.abort()"
FAILS = "print('error: no models')"
SERVES = """
import http.server, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
for option in sys.argv:
    if option.startswith(("--http-port=", "--metrics-port=")):
        listener = http.server.ThreadingHTTPServer(("127.0.0.1", int(option.partition("=")[2])), Handler)
        threading.Thread(target=listener.serve_forever).start()
"""


def start(
    monkeypatch: pytest.MonkeyPatch, repository: Path, *scripts: str, unread: bool = False
) -> list[str]:
    """The log of a start in which Triton is these scripts, one after another; nobody may read it."""
    left, lines = list(scripts), list[str]()

    def log(line: str) -> None:
        if unread:
            raise BrokenPipeError
        lines.append(line)

    def script(command: Sequence[str], _: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", left.pop(0), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    monkeypatch.setattr(server, "_start", script)
    try:
        with run_triton(repository, log, host="127.0.0.1", ports=Ports()) as triton:
            assert triton.serves()
    finally:
        assert not left
    return lines


def test_one_that_lost_a_lock_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = start(monkeypatch, tmp_path, GIVES_UP, SERVES)
    assert any(line.startswith("Triton was killed by signal 6") for line in log)
    assert any(line.endswith("starting it again") for line in log)


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TritonError, match="killed by signal 6"):
        start(monkeypatch, tmp_path, *[GIVES_UP] * STARTS)


def test_a_log_that_nobody_reads_holds_nothing_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More than a pipe holds."""
    start(monkeypatch, tmp_path, f"print('x' * 100 + chr(10) * 300_000, flush=True)\n{SERVES}", unread=True)


def test_other_failures_are_final(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TritonError, match="no models"):
        start(monkeypatch, tmp_path, FAILS)
