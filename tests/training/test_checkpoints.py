"""Checkpoints survive crashes and full disks, and foreign files are recognised."""

import csv
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.runs.evaluate import evaluate_run
from coserve_training.runs.folder import Description, load_run
from coserve_training.training_run import train
from tests.training.untrained_run import write_run

ELSEWHERE = Path("/dev/shm")
"""A file system other than the one that temporary folders are usually on."""


def silent(_: str) -> None:
    """Discard the line of an epoch."""


@pytest.fixture
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(data=(str(image_folder),), network="wide_resnet10_1", split=2, epochs=2, batch_size=60)


@pytest.mark.skipif(not ELSEWHERE.is_dir(), reason="has no /dev/shm")
def test_a_checkpoint_is_never_written_over(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming a new file leaves the old one intact; copying over the old one truncates it first."""
    monkeypatch.setattr(tempfile, "tempdir", str(ELSEWHERE))
    run = tmp_path / "run"
    kept = tmp_path / "kept.ckpt"
    contents = []

    def keep(_: str) -> None:
        if not kept.exists():
            os.link(run / "last.ckpt", kept)
            contents.append(kept.read_bytes())

    train(config, run, report=keep)
    assert kept.read_bytes() == contents[0]
    assert (run / "last.ckpt").read_bytes() != contents[0]
    assert [file.name for file in run.iterdir() if file.name.startswith(".")] == [".lock"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def crash(_: str) -> None:
        raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        train(config, run, report=crash)
    before = sorted((file.name, file.stat().st_size) for file in run.iterdir())
    with files_up_to(100_000):
        full = CliRunner().invoke(app, ["train", "--output", str(run), "--resume", "--workers", "0"])
    assert full.exit_code == 1
    assert full.stderr.startswith(f"error: cannot write {run}/")
    assert full.stderr.count("\n") == 1
    assert sorted((file.name, file.stat().st_size) for file in run.iterdir()) == before
    assert load_run(run).provenance["training"]["epochs"] == 1  # type: ignore[index]
    train(config, run, resume=True, report=silent)


def test_a_disk_that_is_full_from_the_start_is_one_line(config: TrainConfig, tmp_path: Path) -> None:
    command = ["train", "--data", config.data[0], "--network", config.network, "--batch-size", "60"]
    with files_up_to(1000):
        full = CliRunner().invoke(app, [*command, "--workers", "0", "--output", f"{tmp_path}/run"])
    assert full.exit_code == 1
    assert full.stderr == f"error: cannot write {tmp_path}/run/samples.npz: File too large\n"
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_with_weight_decay_on_all_parameters_is_not_resumed(
    config: TrainConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def crash(_: str) -> None:
        raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        train(config, run, report=crash)
    saved = torch.load(run / "last.ckpt", weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    decayed, exempt = (group["params"] for group in optimizer["param_groups"])
    optimizer["param_groups"] = [optimizer["param_groups"][0] | {"params": decayed + exempt}]
    torch.save(saved, run / "last.ckpt")
    resumed = CliRunner().invoke(app, ["train", "--output", str(run), "--resume", "--workers", "0"])
    assert resumed.exit_code == 1
    assert resumed.stderr == (
        f"error: {run}/last.ckpt: written by an earlier version, whose weight decay was on all parameters, "
        "so the run cannot be resumed; start another run from its weights with --initial\n"
    )


def test_a_useless_checkpoint_is_named(image_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", image_folder)
    config = Description.read(run).config
    whole = (run / "last.ckpt").read_bytes()
    foreign = {}
    for name, split in (("more", 4), ("less", 1)):
        foreign[name] = (write_run(tmp_path / name, image_folder, split) / "last.ckpt").read_bytes()
    torch.save([1, 2], tmp_path / "list.ckpt")
    for content, message in (
        (b"", "damaged (empty)"),
        (whole[:1000], "damaged (PytorchStreamReader failed"),
        (b"words " * 1000, "damaged ("),
        (foreign["more"], "not a checkpoint of wide_resnet10_1 divided by 2"),
        (foreign["less"], "not a checkpoint of wide_resnet10_1 divided by 2"),
        ((tmp_path / "list.ckpt").read_bytes(), "not a checkpoint of wide_resnet10_1 divided by 2"),
    ):
        (run / "last.ckpt").write_bytes(content)
        for use in (load_run, lambda folder: train(config, folder, resume=True, report=silent)):
            with pytest.raises(RunError) as refused:
                use(run)
            assert str(refused.value).startswith(f"{run}/last.ckpt: {message}")
            assert str(refused.value).endswith("; best.ckpt exists and can replace it")


def test_finished_epochs_are_not_trained_again_where_their_checkpoint_is_gone(
    image_folder: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", image_folder)
    config = Description.read(run).config
    (run / "metrics.csv").write_text("epoch\n1\n2\n3\n4\n")
    (run / "last.ckpt").unlink()
    (run / ".lock").touch()
    for instead in (
        "best.ckpt exists and can replace it",
        "no checkpoint is left, so begin another run, with another --output",
    ):
        before = {file.name: file.read_bytes() for file in run.iterdir()}
        with pytest.raises(RunError) as refused:
            train(config, run, resume=True, report=silent)
        assert str(refused.value) == (
            f"{run}/last.ckpt is missing, but metrics.csv lists finished epochs; {instead}"
        )
        assert {file.name: file.read_bytes() for file in run.iterdir()} == before
        (run / "best.ckpt").unlink(missing_ok=True)


@pytest.mark.parametrize("content", ["[]", '"words"', "3", "null", '{"config": []}', '{"config": "words"}'])
def test_a_description_of_another_kind_is_damaged(content: str, image_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", image_folder)
    (run / "config.json").write_text(content)
    with pytest.raises(RunError, match=f"^{re.escape(str(run))}/config.json: damaged .not a run's config"):
        load_run(run)


def test_a_file_in_place_of_the_run_folder_is_told(image_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", image_folder)
    for path, reason in (
        ("last.ckpt", "it is a file; give the folder of the run"),
        ("last.ckpt/below", "it has no config.json"),
    ):
        with pytest.raises(RunError) as refused:
            evaluate_run(run / path, report=silent)
        assert str(refused.value) == f"{run}/{path}: not a run folder ({reason})"


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_damaged_samples_are_named(image_folder: Path, tmp_path: Path, content: bytes | None) -> None:
    run = write_run(tmp_path / "run", image_folder)
    if content is None:
        (run / "samples.npz").unlink()
    else:
        (run / "samples.npz").write_bytes(content)
    with pytest.raises(RunError, match=re.escape(f"{run}/samples.npz") + "( is missing|: damaged)"):
        load_run(run)


def test_the_best_checkpoint_may_take_the_place_of_the_last(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config, run, report=silent)
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    shutil.copy(run / "best.ckpt", run / "last.ckpt")
    train(config, run, resume=True, report=silent)
    again = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [{**row, "seconds": ""} for row in again] == [{**row, "seconds": ""} for row in rows]
