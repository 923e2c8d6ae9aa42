"""Members that are trained in a process each, compared with one process that trains them all."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from coserve_training.config import TrainConfig
from coserve_training.errors import ConfigError
from coserve_training.module import CoTraining
from coserve_training.runs.evaluate import evaluate_run
from coserve_training.training_run import train
from tests.training.untrained_run import write_run

METRICS = ["train_loss", "train_top1", "test_loss", "test_top1", "learning_rate"]
COSERVE = Path(sys.executable).with_name("coserve")


@pytest.fixture(scope="module")
def config(image_folder: Path) -> TrainConfig:
    """Everything random is on: each member must draw what it would draw in one process with the others."""
    return TrainConfig(
        data=(str(image_folder),),
        network="wide_resnet10_1",
        split=3,
        epochs=2,
        batch_size=40,
        precision="fp32",
        policy="autoaugment-cifar10",
        erasing=0.5,
        mixup=0.2,
        label_smoothing=0.1,
        dropout=0.3,
        drop_path=0.3,
        ema=0.9,
    )


@pytest.fixture(scope="module")
def one(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process; `cut` beside it is a copy after the first epoch."""
    return run_in_one_process(config, tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def placed(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process per member; `cut` beside it is a copy after the first epoch."""
    return run_placed(config, tmp_path_factory.mktemp("runs") / "placed")


def run_in_one_process(config: TrainConfig, folder: Path) -> Path:
    def copy_once(_: str) -> None:
        if not (folder.parent / "cut").exists():
            shutil.copytree(folder, folder.parent / "cut")

    train(config, folder, report=copy_once)
    return folder


def run_placed(config: TrainConfig, folder: Path) -> Path:
    script = Path(__file__).with_name("placed_run.py")
    check(sys.executable, script, folder, folder.parent / "cut", json.dumps(asdict(config)))
    return folder


def check(*command: object) -> str:
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return run.stdout


def assert_alike(folder: Path, expected: Path) -> None:
    """Check that two run folders hold the same files, with the same content up to rounding."""
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in expected.iterdir())
    assert (folder / "config.json").read_bytes() == (expected / "config.json").read_bytes()
    history, wanted = (
        [
            [float(row[name]) for name in METRICS]
            for row in csv.DictReader((path / "metrics.csv").read_text().splitlines())
        ]
        for path in (folder, expected)
    )
    assert len(history) == len(wanted)
    for row, wanted_row in zip(history, wanted, strict=True):
        assert row == pytest.approx(wanted_row, abs=5e-5)
    scores, wanted_scores = (
        json.loads((path / "evaluation.json").read_text()) for path in (folder, expected)
    )
    assert scores["ensemble"] == pytest.approx(wanted_scores["ensemble"], abs=1e-4)
    saved, wanted_saved = (torch.load(path / "last.ckpt", weights_only=True) for path in (folder, expected))
    assert saved.keys() == wanted_saved.keys()
    for key in ("state_dict", "current_model_state", "optimizer_states", "averaging_state", "lr_schedulers"):
        assert_close(saved.get(key), wanted_saved.get(key), key)


def assert_close(value: Any, expected: Any, path: str) -> None:
    """Compare parts of two checkpoints, including the order of their keys."""
    if isinstance(expected, dict):
        assert list(value) == list(expected), path
        for key in expected:
            assert_close(value[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), path
        for index, (inner, wanted) in enumerate(zip(value, expected, strict=True)):
            assert_close(inner, wanted, f"{path}/{index}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=path)
    else:
        assert value == expected, path


def test_placed_members_train_as_in_one_process(one: Path, placed: Path, image_folder: Path) -> None:
    assert_alike(placed, one)
    for checkpoint in ("last", "best"):
        scores = evaluate_run(placed, [image_folder], checkpoint)
        expected = evaluate_run(one, [image_folder], checkpoint)
        assert len(scores.members) == 3
        for member, wanted in zip(scores.members, expected.members, strict=True):
            assert member.nll == pytest.approx(wanted.nll, abs=1e-4)


def test_a_run_of_one_process_goes_on_with_placed_members(one: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(one.parent / "cut", tmp_path / "cut")
    told = check(COSERVE, "train", "--output", cut, "--resume", "--devices", 3, "--place-members")
    assert told.count("epoch 2/2") == 1
    assert "epoch 1/2" not in told
    assert_alike(cut, one)


def test_a_run_of_placed_members_goes_on_in_one_process(
    config: TrainConfig, one: Path, placed: Path, tmp_path: Path
) -> None:
    cut = shutil.copytree(placed.parent / "cut", tmp_path / "cut")
    train(config, cut, resume=True, report=print)
    assert_alike(cut, one)


def test_other_parts_of_the_recipe_with_placed_members(
    config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    """All in one launch, because each process takes seconds to import torch.

    The run starts from another one, cuts crops while images are decoded, accumulates gradients, and has the
    other loss term and optimizer.
    """
    start = write_run(tmp_path / "start", image_folder, split=2)
    changed = replace(
        config, split=2, crop="resized", accumulate=3, optimizer="rmsprop", learning_rate=0.01, mixup=0,
        co_training_term="kl", start_size=16, sync_batch_norm=True, policy="none", ema=0, initial=str(start),
    )  # fmt: skip
    (tmp_path / "placed").mkdir()
    (tmp_path / "one").mkdir()
    placed = run_placed(changed, tmp_path / "placed" / "run")
    assert_alike(placed, run_in_one_process(changed, tmp_path / "one" / "run"))


def test_a_process_holds_only_its_own_member(config: TrainConfig) -> None:
    modules = []
    for placed in (None, 1):
        L.seed_everything(0, verbose=False)
        modules.append(CoTraining(config, 3, [0.5] * 3, [0.2] * 3, placed))
    everything, own = (module.state_dict() for module in modules)
    assert own
    assert own.keys() == {name for name in everything if name.startswith("members.1.")}
    assert all(torch.equal(value, everything[name]) for name, value in own.items())


@pytest.mark.parametrize(("change", "devices", "nodes", "message"), [
    ({}, 2, 1, "devices × nodes must be 3, not 2"),
    ({}, 3, 2, "devices × nodes must be 3, not 6"),
    ({"precision": "fp16"}, 1, 3, "cannot be placed with precision fp16"),
])  # fmt: skip
def test_members_that_cannot_be_placed(
    config: TrainConfig, tmp_path: Path, change: dict[str, Any], devices: int, nodes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(config, **change), tmp_path / "run", devices=devices, nodes=nodes, place_members=True)
    assert not (tmp_path / "run").exists()
