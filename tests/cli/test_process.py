"""Changes that `coserve serve` makes to its process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import COSERVE

HUNG = """
import threading, time, typer
from coserve_cli.process import exit_in_time
threading.Thread(target=time.sleep, args=(60,)).start()
print("last words")
with exit_in_time():
    {body}
"""


@pytest.mark.parametrize(
    ("body", "status"),
    [("pass", 0), ("raise typer.Exit(7)", 7), ("raise typer.Exit()", 0), ("raise RuntimeError('bug')", 1)],
)
def test_a_thread_that_hangs_does_not_change_the_status(body: str, status: int) -> None:
    program = HUNG.format(body=body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == status, done.stderr
    assert done.stdout == "last words\n"
    assert ("bug" in done.stderr) == ("bug" in body)


def test_a_server_that_cannot_start_says_why_with_status_1(tmp_path: Path) -> None:
    command = [COSERVE, "serve", "--repository", tmp_path / "none", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_sigterm_before_the_server_runs_ends_the_process() -> None:
    """Even if the default action is to ignore it, as for a container's first process."""
    program = (
        "import signal\n"
        "from coserve_cli.main import app\n"
        "from coserve_server import settings\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "settings.load_settings = lambda *_, **__: signal.raise_signal(signal.SIGTERM)\n"
        "app(['serve'])"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=50).returncode == 0
