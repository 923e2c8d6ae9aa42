"""A run that is killed at any moment goes on as if nothing had happened; its record says what was done."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.runs.folder import load_run
from coserve_training.runs.lock import WRITTEN
from coserve_training.training_run import train

WRITES = [
    "samples.npz", "images.npz", "config.json", "best.ckpt", "last.ckpt", "metrics.csv", "last.ckpt",
    "metrics.csv", "evaluation.json",
]  # fmt: skip
"""What a run of two epochs writes, in order, if the first epoch is the best one."""


class Killed(BaseException):
    """Raised in place of SIGKILL: nothing handles it."""


@pytest.fixture(scope="module", autouse=True)
def _no_epoch_is_better_than_the_first() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coserve_training.module.mark_correct", lambda logits, targets: 0.0 * targets)
        yield


def silent(_: str) -> None:
    """Discard a line."""


@pytest.fixture(scope="module")
def config(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return a run that starts from another one."""
    root = tmp_path_factory.mktemp("crashes")
    for file in sorted(image_folder.rglob("0[01]?.png")):
        copy = root / "data" / file.relative_to(image_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    plain = TrainConfig(
        data=(str(root / "data"),), network="wide_resnet10_1", epochs=1, batch_size=20, image_size=16
    )
    train(plain, root / "initial", report=silent)
    return replace(plain, epochs=2, initial=str(root / "initial"), ema=0.9)


@pytest.fixture(scope="module")
def unbroken(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert killed_at(None, lambda: train(config, folder, report=silent)) == WRITES
    return folder


def killed_at(write: int | None, run: Callable[[], object]) -> list[str]:
    """Run until the given write, with its file complete but not in place; return what was written before."""
    written: list[str] = []
    replace_file = Path.replace

    def count(partial: Path, file: Path) -> Path:
        if len(written) == write:
            raise Killed
        written.append(file.name)
        return replace_file(partial, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", count)
        with suppress(Killed):
            run()
    return written


def test_what_a_killed_training_leaves_half_written_can_be_told(unbroken: Path) -> None:
    assert set(WRITTEN) == set(WRITES)


def content(folder: Path) -> dict[str, Any]:
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    checkpoints = {name: torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last")}
    return {
        "files": sorted(file.name for file in folder.iterdir()),
        "config": json.loads((folder / "config.json").read_text()),
        "evaluation": json.loads((folder / "evaluation.json").read_text()),
        "history": [{**row, "seconds": ""} for row in rows],
        "provenance": load_run(folder).provenance,
        "images": (folder / "images.npz").read_bytes(),
        "weights": {
            f"{name}.{key}": value.tolist()
            for name, saved in checkpoints.items()
            for key, value in saved["state_dict"].items()
        },
    }


@pytest.mark.parametrize("write", range(len(WRITES)))
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(
    config: TrainConfig, unbroken: Path, tmp_path: Path, write: int
) -> None:
    run = tmp_path / "run"
    assert killed_at(write, lambda: train(config, run, report=silent)) == WRITES[:write]
    begun = "config.json" in WRITES[:write]
    if not begun:
        with pytest.raises(RunError, match="not a run folder"):
            train(config, run, resume=True, report=silent)
    train(config, run, resume=begun, report=silent)
    assert content(run) == content(unbroken)


def test_a_run_is_not_started_again_from_weights_that_have_changed(
    config: TrainConfig, tmp_path: Path
) -> None:
    initial = Path(shutil.copytree(str(config.initial), tmp_path / "initial"))
    moved = replace(config, initial=str(initial))
    killed_at(WRITES.index("best.ckpt"), lambda: train(moved, tmp_path / "run", report=silent))
    train(replace(moved, initial=None, epochs=2, ema=0.0), initial, resume=True, report=silent)
    with pytest.raises(
        RunError, match=rf"^{initial} has changed since {tmp_path}/run was started from its w"
    ):
        train(moved, tmp_path / "run", resume=True, report=silent)


def test_a_copy_of_a_run_keeps_its_best_epoch(config: TrainConfig, unbroken: Path, tmp_path: Path) -> None:
    """Its best accuracy counts wherever the folder lies."""
    copy = Path(shutil.copytree(unbroken, tmp_path / "copy"))
    best = load_run(copy, "best").provenance["training"]
    train(replace(config, epochs=3), copy, resume=True, report=silent)
    after = load_run(copy, "best").provenance["training"]
    assert after["epochs"] == best["epochs"]  # type: ignore[index]
    assert load_run(copy).provenance["training"]["epochs"] == 3  # type: ignore[index]


def test_other_data_on_a_resume_are_recorded(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plain = replace(config, epochs=1, initial=None)
    train(plain, run, report=silent)
    moved = Path(shutil.copytree(config.data[0], tmp_path / "moved"))
    train(replace(plain, data=(str(moved),)), run, resume=True, report=silent)
    description = json.loads((run / "config.json").read_text())
    assert (description["config"]["data"], description["dataset"]) == ([str(moved)], "data")
    shutil.copytree(moved, tmp_path / "more")
    shutil.copy(moved / "train/red/000.png", tmp_path / "more/train/red/100.png")
    with (tmp_path / "more/train/red/100.png").open("ab") as file:
        file.write(b"changed")
    train(replace(plain, data=(str(tmp_path / "more"),)), run, resume=True, report=silent)
    assert load_run(run).provenance["dataset"] == "data+more"
