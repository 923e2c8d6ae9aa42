"""Options that change the training loop, each compared with a run that must give the same results."""

import csv
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coserve_training.config import TrainConfig
from coserve_training.errors import ConfigError
from coserve_training.optimise import learning_rate_factor
from coserve_training.runs.folder import load_run
from coserve_training.training_run import train

METRICS = ["train_loss", "train_top1", "test_loss", "test_top1", "learning_rate"]


def silent(_: str) -> None:
    """Discard the line of an epoch."""


@pytest.fixture(scope="module")
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(image_folder),),
        network="wide_resnet10_1",
        split=2,
        epochs=2,
        batch_size=40,
        crop="none",
        flip=False,
        precision="fp32",
    )


def history(folder: Path) -> list[list[float]]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [[float(row[name]) for name in METRICS] for row in rows]


def test_two_processes_with_shared_batch_norm_train_like_one(
    config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    # 29 test images in batches of 28 leave one process without a share of the last batch.
    images = shutil.copytree(image_folder, tmp_path / "images")
    next((images / "test" / "red").iterdir()).unlink()
    train(replace(config, data=(str(images),), batch_size=28), tmp_path / "one", report=silent)
    command = [Path(sys.executable).with_name("coserve"), "train", "--data", images]
    command += ["--network", config.network, "--split", "2", "--epochs", "2", "--batch-size", "28"]
    command += ["--crop", "none", "--no-flip", "--precision", "fp32", "--sync-batch-norm"]
    command += ["--devices", "2", "--tensorboard", "--output", tmp_path / "two"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("epoch 2/2") == 1
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, abs=2e-4)
    assert list((tmp_path / "two" / "tensorboard").glob("events.*"))


def test_devices_must_share_a_batch_evenly(config: TrainConfig, tmp_path: Path) -> None:
    for batch_size, message in (
        (40, "a multiple of the 3 devices, not 40"),
        (3, "at least 6, two images for each"),
    ):
        with pytest.raises(ConfigError, match=f"batch_size must be {message}"):
            train(replace(config, batch_size=batch_size), tmp_path / "run", devices=3)
    assert not (tmp_path / "run").exists()


def test_the_averaged_weights_are_what_a_run_leaves(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, ema=0.9), tmp_path / "run", report=silent)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    name = "members.0.2.3.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    loaded = dict(load_run(tmp_path / "run").members[0].named_parameters())["2.3.weight"]
    assert torch.equal(loaded, saved["state_dict"][name])


def test_accumulated_batches_make_one_update(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, accumulate=3, epochs=1), tmp_path / "run", report=silent)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1


def test_schedules_go_by_epochs_if_a_resumed_run_has_fewer_images(
    config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    shorter = replace(config, data=(str(images),), split=1, epochs=4, batch_size=20, image_size=16)
    lines: list[str] = []

    def stop_in_the_middle(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        train(shorter, tmp_path / "run", report=stop_in_the_middle)
    for file in (images / "train").rglob("*[02468].png"):
        file.unlink()
    train(shorter, tmp_path / "run", resume=True, report=silent)
    rates = [row[METRICS.index("learning_rate")] for row in history(tmp_path / "run")]
    expected = [shorter.learning_rate * learning_rate_factor(shorter, epoch, 1) for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("change", [
    {"policy": "autoaugment-cifar10", "mixup": 0.2, "erasing": 0.5, "label_smoothing": 0.1},
    {"policy": "randaugment", "cutout": 8, "co_training_term": "kl", "drop_path": 0.3, "dropout": 0.2},
    {"optimizer": "rmsprop", "learning_rate": 0.01, "schedule": "exponential", "crop": "resized"},
    {"schedule": "step", "precision": "bf16", "divide_weight_decay": True, "start_size": 16},
    {"ema": 0.9},
])  # fmt: skip
def test_every_part_of_the_recipe_trains_and_resumes_alike(
    config: TrainConfig, tmp_path: Path, change: dict[str, object]
) -> None:
    changed = replace(config, **change)  # type: ignore[arg-type]
    lines: list[str] = []

    def keep_the_first_epoch(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            shutil.copytree(tmp_path / "run", tmp_path / "cut")

    train(changed, tmp_path / "run", report=keep_the_first_epoch)
    train(changed, tmp_path / "cut", resume=True, report=silent)
    assert history(tmp_path / "cut") == history(tmp_path / "run")
    assert all(math.isfinite(value) for row in history(tmp_path / "run") for value in row)
