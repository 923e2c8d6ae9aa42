"""If one process of a run fails, all end, and say in a line why."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from coserve_training.distributed.ending import ending_together
from coserve_training.errors import RunError

COSERVE = Path(sys.executable).with_name("coserve")
KILLED = "error: a process that reads images was killed, usually for want of memory or of shared memory "
ENDED = "error: another process of this training has ended; if it gave no reason, it was killed, "


@pytest.fixture
def training(image_folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a long training of two processes, which has finished an epoch."""
    command = [COSERVE, "train", "--data", image_folder, "--network", "wide_resnet10_1", "--epochs", "500"]
    command += ["--batch-size", "60", "--workers", "1", "--devices", "2", "--output", tmp_path / "run"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/500")
    below = psutil.Process(process.pid).children(recursive=True)
    yield process
    _, left = psutil.wait_procs(below, 20)
    assert left == []


@pytest.mark.parametrize("of_first", [True, False])
def test_a_process_that_loses_its_reader_ends_all(training: subprocess.Popen[str], of_first: bool) -> None:
    first = psutil.Process(training.pid)
    (second,) = (child for child in first.children() if child.environ().get("LOCAL_RANK") == "1")
    (reader,) = set((first if of_first else second).children()) - {second}
    reader.kill()
    _, errors = training.communicate(timeout=120)
    assert training.returncode != 0
    lines = errors.splitlines()
    assert lines[0].startswith(KILLED)
    assert all(line.startswith(ENDED) for line in lines[1:])


def started(seconds: float) -> tuple[Any, subprocess.Popen[bytes]]:
    """Return a trainer that has started another process, which ends by itself."""
    process = subprocess.Popen(["sleep", str(seconds)])
    launcher = SimpleNamespace(procs=[process])
    return SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)), process


def test_a_failure_ends_what_was_started() -> None:
    trainer, process = started(60)
    with pytest.raises(RuntimeError, match="a bug"), ending_together(trainer):
        raise RuntimeError("a bug")
    assert process.returncode == -signal.SIGKILL
    assert trainer.strategy.launcher.procs == []
    trainer.strategy.launcher = None
    with pytest.raises(KeyboardInterrupt), ending_together(trainer):
        raise KeyboardInterrupt


@pytest.mark.parametrize("message", [
    "[pair.cc:553] Connection closed by peer [127.0.0.1]:14032", "writev: Connection reset by peer",
    "ncclRemoteError: socketProgress: Connection closed by remote peer host<1>", "sendBytes: Broken pipe",
])  # fmt: skip
def test_a_process_that_another_one_has_left_lets_it_say_why(message: str) -> None:
    trainer, process = started(0.2)
    with (
        pytest.raises(RunError, match=r"^another process of this training has ended"),
        ending_together(trainer),
    ):
        raise RuntimeError(message)
    assert process.returncode == 0


def test_a_success_ends_nothing() -> None:
    trainer, process = started(0.2)
    with ending_together(trainer):
        pass
    assert trainer.strategy.launcher.procs == [process]
    assert process.wait() == 0
