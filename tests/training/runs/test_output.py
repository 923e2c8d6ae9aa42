"""An output that the run could not write at its end is refused at its start."""

import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.runs.output import check_output
from coserve_training.training_run import train

ODD = [
    "a b ",
    " a",
    "a{b}",
    "{epoch}",
    "a=b",
    "file:x",
    "~x",
    "a?b*[c]",
    "a#b%c",
    os.fsdecode(b"\xff"),
    "a\nb",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_paths_are_taken_and_nothing_remains(name: str, tmp_path: Path) -> None:
    check_output(tmp_path / name / "run", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a::b", "memory://x::y"])
def test_paths_that_lightning_takes_for_urls_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a path that checkpoints can be written to"):
        check_output(tmp_path / name, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [
    ("n" * 300, "File name too long"), ("a\0b", "embedded null"),
    ("link", "No such file or directory"), ("link/run", "No such file or directory"),
    ("file", "Not a directory"),
])  # fmt: skip
def test_paths_that_cannot_be_created_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone/target")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"^cannot write the run folder .*: {reason}"):
        check_output(tmp_path / name, 0)


def test_runs_may_begin_at_once_below_a_folder_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one run checks its folder, another one creates its own beside it, or is only about to."""
    probe = tempfile.TemporaryFile
    begun: list[Path] = []

    def begin_another(*args: Any, **options: Any) -> Any:
        assert not (tmp_path / "runs").exists()
        begun.append(tmp_path / "runs/1")
        begun[0].mkdir(parents=True)
        return probe(*args, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", begin_another)
    check_output(tmp_path / "runs/0", 0)
    assert begun[0].is_dir()


def test_an_odd_path_holds_a_whole_run(image_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=(str(image_folder),), network="wide_resnet10_1", epochs=1, batch_size=60)
    folder = tmp_path / os.fsdecode(b"file:{x}=\xff ")
    assert train(config, folder, report=lambda _: None) is not None
    assert train(config, folder, resume=True, report=lambda _: None) is not None


def test_no_space_or_no_access_is_told_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(data=(str(tmp_path / "absent"),), network="wide_resnet10_1")
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(free=1_000_000))
        with pytest.raises(RunError, match=r"run: 1 MB are free there, and the run's checkpoints need 2 MB$"):
            train(config, tmp_path / "run")
        (tmp_path / "run").mkdir()
        (tmp_path / "run/last.ckpt").write_bytes(bytes(600_000))
        with pytest.raises(RunError, match=r"need 1 MB$"):
            check_output(tmp_path / "run", 2_000_000)
        (tmp_path / "run/best.ckpt").write_bytes(bytes(600_000))
        check_output(tmp_path / "run", 2_000_000)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^cannot write the run folder .*/file/run: Not a directory$"):
        train(config, tmp_path / "file/run")
    with pytest.raises(RunError, match=r"^cannot write the run folder .*: File name too long$"):
        train(config, tmp_path / ("n" * 300))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
