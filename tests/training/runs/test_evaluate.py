"""Evaluation of a run on data that differ from what it was trained on, or change meanwhile."""

import shutil
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from coserve_training.doubt.assess import assess
from coserve_training.runs.evaluate import held_out_logits
from coserve_training.runs.folder import Description
from coserve_training.runs.images import ImageRecord
from tests.training.untrained_run import LABELS, write_run


def test_classes_are_numbered_as_the_run_numbers_them(image_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", image_folder)
    _, before, _ = held_out_logits(run)
    replace(Description.read(run), labels=LABELS[::-1]).write(run)
    _, after, _ = held_out_logits(run)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.targets, 2 - before.targets)


def test_images_that_become_unreadable_are_reported(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    run = write_run(tmp_path / "run", data, skip_corrupt=True)
    # Large splits are not kept in memory.
    monkeypatch.setattr(
        ImageRecord, "load_test", partialmethod(ImageRecord.load_test, cache_bytes=0, workers=0)
    )
    lines: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "checking images" and done == total:
            (data / "test/red/003.png").unlink()

    loaded, test, _ = held_out_logits(run, progress=progress, report=lines.append)
    (line,) = lines
    assert f"another one was taken twice: {data}/test/red/003.png (no such file or directory)" in line
    lines.clear()
    (data / "test/blue/000.png").unlink()
    assess(run, loaded, test, corrupted=True, limit=8, report=lines.append)
    (line,) = lines
    assert f"another one was taken twice: {data}/test/blue/000.png" in line
