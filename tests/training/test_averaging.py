"""The moving average of the weights: its warm-up, and where the averaged weights are used."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.module import CoTraining
from coserve_training.runs.evaluate import evaluate_run
from coserve_training.training_run import train

DECAY = 0.9999


@pytest.fixture(scope="module")
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(image_folder),),
        network="wide_resnet10_1",
        epochs=2,
        batch_size=40,
        image_size=16,
        precision="fp32",
        accumulate=2,
        ema=DECAY,
    )


@pytest.fixture(scope="module")
def weights() -> list[dict[str, Tensor]]:
    return []


@pytest.fixture(scope="module")
def run(
    config: TrainConfig, weights: list[dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Train, note the weights after every update, and copy the run to `cut` after the first epoch."""
    root = tmp_path_factory.mktemp("averaged")

    def note(self: CoTraining, *_: Any) -> None:
        if self.global_step > len(weights):
            weights.append({name: value.clone() for name, value in self.members.state_dict().items()})

    def copy(line: str) -> None:
        if line.startswith("epoch 1/"):
            shutil.copytree(root / "run", root / "cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoTraining, "on_train_batch_end", note)
        train(config, root / "run", report=copy)
    return root / "run"


def saved(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def test_the_average_is_warmed_up(run: Path, weights: list[dict[str, Tensor]]) -> None:
    assert len(weights) == 4
    names = [name for name, value in weights[0].items() if value.is_floating_point()]
    assert any(name.endswith("running_var") for name in names)
    state = saved(run / "last.ckpt")["state_dict"]
    for name in names:
        mean = weights[0][name].double()
        for done, current in enumerate(weights[1:], start=1):
            decay = min(DECAY, (1 + done) / (10 + done))
            mean = decay * mean + (1 - decay) * current[name]
        torch.testing.assert_close(state[f"members.{name}"].double(), mean, rtol=1e-5, atol=1e-6)


def test_a_resumed_average_is_exactly_that_of_a_run_without_a_break(config: TrainConfig, run: Path) -> None:
    train(config, run.with_name("cut"), resume=True, report=lambda _: None)
    resumed, whole = (saved(folder / "last.ckpt") for folder in (run.with_name("cut"), run))
    for key in ("state_dict", "current_model_state", "averaging_state"):
        for name, value in whole[key].items():
            assert torch.equal(resumed[key][name], value), name


def test_the_averaged_weights_are_measured_and_saved_as_best(run: Path) -> None:
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    last = evaluate_run(run, report=lambda _: None)
    assert last.ensemble.top1 == pytest.approx(float(rows[-1]["test_top1"]), abs=1e-5)
    assert last.members[0].nll == pytest.approx(float(rows[-1]["test_loss"]), abs=1e-3)
    best = evaluate_run(run, checkpoint="best", report=lambda _: None)
    assert best.ensemble.top1 == pytest.approx(max(float(row["test_top1"]) for row in rows), abs=1e-5)
    state = saved(run / "best.ckpt")
    name = "members.0.2.3.weight"
    assert not torch.equal(state["state_dict"][name], state["current_model_state"][name])
