"""Triton servers that fail while they load; scripts stand in, since no test can provoke that."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from coserve_triton import server
from coserve_triton.errors import TritonError
from coserve_triton.output import LOCK_LOST
from coserve_triton.server import STARTS, Ports, run_triton

pytest.importorskip("pytriton", reason="nvidia-pytriton is not installed")

GIVES_UP = f"import os; print('  what():  {LOCK_LOST}', flush=True); os.abort()"
FAILS = "print('error: no models')"
SERVES = """
import http.server, sys, threading
print('"Started HTTPService at 127.0.0.1:0"', flush=True)
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
    """Return the log of a start in which Triton is these scripts, one after another."""
    left = list(scripts)
    lines: list[str] = []

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
    """Print more than a pipe holds."""
    start(monkeypatch, tmp_path, f"print('x' * 100 + chr(10) * 300_000, flush=True)\n{SERVES}", unread=True)


def test_other_failures_are_final(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TritonError, match="no models"):
        start(monkeypatch, tmp_path, FAILS)


SERVES_ITS_REPOSITORY = f"""
import pathlib, sys
(folder,) = [option.partition("=")[2] for option in sys.argv if option.startswith("--model-repository=")]
print("repository", repr(folder), sorted(path.name for path in pathlib.Path(folder).iterdir()), flush=True)
{SERVES}
"""


def test_triton_gets_a_repository_path_that_no_shell_splits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton's Python backend gives paths unquoted to a shell, and then waits for ever."""
    repository = tmp_path / "with spaces; and $more"
    (repository / "pair").mkdir(parents=True)
    (line,) = [one for one in start(monkeypatch, repository, SERVES_ITS_REPOSITORY) if "repository" in one]
    assert line.endswith("repository' ['pair']")
    assert " and " not in line
    assert (repository / "pair").is_dir(), "only the link is removed"


def test_temporary_files_where_a_shell_would_split_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my files"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(TritonError, match=r"my files.* set TMPDIR"):
        start(monkeypatch, tmp_path)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (
            ["--http-port=8000"],
            "--http-port cannot be passed to tritonserver: give --http-port before the --",
        ),
        (
            ["--metrics-address", "0.0.0.0"],
            "--metrics-address cannot be passed .*: give --host before the --",
        ),
        (
            ["--log-verbose=1", "--allow-metrics=false"],
            "--allow-metrics .*: Triton is ready once this service",
        ),
    ],
)
def test_options_that_would_hide_the_server(tmp_path: Path, arguments: list[str], advice: str) -> None:
    with (
        pytest.raises(TritonError, match=advice),
        run_triton(tmp_path, print, host="127.0.0.1", ports=Ports(), arguments=arguments),
    ):
        pass
