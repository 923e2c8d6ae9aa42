"""`coserve classify` as a process: terminals, encodings and signals."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.classify_server import Server


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("coserve")), "classify", *map(str, arguments)]


def on_a_terminal(*arguments: object) -> SimpleNamespace:
    """Run the command with only stderr on a terminal."""
    leader, follower = pty.openpty()
    done = subprocess.run(
        command(*arguments),
        stderr=follower,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # Linux reports the end of a terminal so
        pass
    os.close(leader)
    return SimpleNamespace(returncode=done.returncode, stdout=done.stdout, terminal=shown.decode())


def test_shows_progress_on_a_terminal_only_and_keeps_results_clean(server: Server, folder: Path) -> None:
    shown = on_a_terminal(folder, "--batch-size", 1)
    assert shown.returncode == 0
    assert "classifying" in shown.terminal
    assert "100%" in shown.terminal
    assert "\x1b" not in shown.stdout
    assert len(shown.stdout.splitlines()) == 4

    assert on_a_terminal(folder).terminal == ""


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_escapes_what_the_output_cannot_show(server: Server, folder: Path, encoding: str) -> None:
    image = (folder / "a.png").rename(folder / "ü图.png")
    done = subprocess.run(
        command(image), env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(str(image).encode(encoding, "backslashreplace"))


def test_stops_quietly_when_interrupted(server: Server, folder: Path) -> None:
    server.may_answer.clear()
    process = subprocess.Popen(
        command(folder, "--batch-size", 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.arrived.wait(20)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    server.may_answer.set()
    assert (process.returncode, stdout, stderr.strip()) == (130, "", "")
