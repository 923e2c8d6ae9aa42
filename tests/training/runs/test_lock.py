"""One training at a time uses a run folder."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.runs.folder import write_atomically
from coserve_training.runs.lock import only_training
from coserve_training.training_run import train
from tests.training.untrained_run import write_run

HOLD = """
import os, sys, time
from pathlib import Path
from coserve_training.runs.lock import only_training
with only_training(Path(sys.argv[1])):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)
"""

ENTER = """
import sys
from pathlib import Path
from coserve_training.runs.lock import only_training
with only_training(Path(sys.argv[1])):
    pass
"""


@pytest.fixture
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(data=(str(image_folder),), network="wide_resnet10_1", split=1, epochs=4, batch_size=60)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that uses the folder `run`, and has a child of its own."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_and_left_alone(
    holder: subprocess.Popen[str], config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"^another training is using .*run; wait for it to end, or "):
        train(config, tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]

    stored = write_run(tmp_path / "other", image_folder, split=1, batch_size=60)
    for file in stored.iterdir():
        file.rename(tmp_path / "run" / file.name)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    lines: list[str] = []
    with pytest.raises(RunError, match=r"^another training is using"):
        train(config, tmp_path / "run", resume=True, report=lines.append)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert lines == []


def test_a_folder_is_used_by_one_thread_at_a_time(tmp_path: Path) -> None:
    """Closing the file in one thread would also end the lock that another one holds on it."""
    with only_training(tmp_path), ThreadPoolExecutor(1) as other:
        for path in (tmp_path, tmp_path / "." / ".." / tmp_path.name):
            with pytest.raises(RunError, match=r"^another training is using"):
                other.submit(only_training(path).__enter__).result()
        refused = subprocess.run([sys.executable, "-c", ENTER, str(tmp_path)], capture_output=True, text=True)
        assert "another training is using" in refused.stderr
    with only_training(tmp_path):
        pass


def test_a_killed_training_leaves_the_folder_free_though_its_children_live(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()
    holder.wait()
    os.killpg(holder.pid, 0)  # the child lives
    with only_training(tmp_path / "run"):
        pass


def test_a_run_that_began_while_the_images_were_read_is_kept(
    config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def begin_another(what: str, done: int, total: int) -> None:
        if not folder.exists():
            write_run(folder, image_folder)

    with pytest.raises(RunError, match="holds a run already"):
        train(config, folder, progress=begin_another)
    assert {file.name for file in folder.iterdir()} >= {"last.ckpt", "config.json"}
    assert (folder / "last.ckpt").stat().st_size > 0


def test_what_a_killed_training_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in (".last.ckpt.0a1b2c3d.partial", ".evaluation.json.0a1b2c3d.partial", "last.ckpt"):
        (tmp_path / name).write_text("half")
    with only_training(tmp_path):
        left = {file.name for file in tmp_path.iterdir()}
    assert left == {"last.ckpt", ".lock"}


def test_a_training_that_starts_while_an_evaluation_is_written_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: int) -> None:
        with only_training(tmp_path):
            pass

    monkeypatch.setattr(os, "fsync", start)
    for name in ("last.calibration.json", "matrix.csv"):
        write_atomically(tmp_path / name, b"content")
    assert {file.name for file in tmp_path.iterdir()} == {".lock", "last.calibration.json", "matrix.csv"}


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(), RunError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_write_that_fails_leaves_nothing_behind(
    error: BaseException, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with pytest.raises(raised):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    complaint = r"^cannot write the run folder .*: Not a directory"
    with pytest.raises(RunError, match=complaint), only_training(tmp_path / "file" / "run"):
        pass


def test_several_may_write_one_file_at_once(tmp_path: Path) -> None:
    contents = [bytes([value]) * 4096 for value in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: write_atomically(tmp_path / "file", content), contents * 20))
    assert (tmp_path / "file").read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
