"""Evaluating on the device that training runs on."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coserve_training import training_run
from coserve_training.config import TrainConfig
from coserve_training.data import Split
from coserve_training.runs import evaluate as evaluating
from coserve_training.runs.calibrate import calibrate_run
from coserve_training.runs.evaluate import evaluate_run, member_logits
from coserve_training.training_run import train
from tests.training.untrained_run import write_run

META = torch.device("meta")


class Recorder(nn.Module):
    """Notes the devices of its images and weights, and returns logits in main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.devices: list[tuple[str, str]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.devices.append((images.device.type, self.weight.device.type))
        return torch.zeros(len(images), 3)


@pytest.fixture
def split() -> Split:
    return Split(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 0]))


def test_members_and_images_are_moved_to_the_device(split: Split) -> None:
    members = [Recorder(), Recorder()]
    member_logits(members, split, [0.5] * 3, [0.5] * 3, device=META)
    assert [member.devices for member in members] == [[("meta", "meta")]] * 2


def test_the_gpu_is_used_if_there_is_one(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "choose_device", lambda: META)
    member = Recorder()
    member_logits([member], split, [0.5] * 3, [0.5] * 3)
    assert member.devices == [("meta", "meta")]


def test_a_run_ends_on_the_device_it_was_trained_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device | None] = []
    evaluate = training_run.evaluate

    def note(
        members: Sequence[nn.Module],
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        progress: None = None,
        device: torch.device | None = None,
    ) -> evaluating.Evaluation:
        devices.append(device)
        return evaluate(members, split, mean, std, progress, device)

    monkeypatch.setattr(training_run, "evaluate", note)
    config = TrainConfig(
        data=(str(image_folder),), network="wide_resnet10_1", epochs=1, batch_size=60, image_size=16
    )
    train(config, tmp_path / "run", report=lambda _: None)
    assert devices == [torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="has no GPU")
def test_a_gpu_gives_what_the_cpu_gives(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", image_folder)
    on_gpu = evaluate_run(run)
    _, calibrated, _ = calibrate_run(run)
    used = torch.cuda.max_memory_allocated()
    record = json.loads((run / "last.calibration.json").read_text())
    monkeypatch.setattr(evaluating, "choose_device", lambda: torch.device("cpu"))
    on_cpu = evaluate_run(run)
    _, wanted, _ = calibrate_run(run)
    assert used > 0
    assert on_gpu.ensemble.nll == pytest.approx(on_cpu.ensemble.nll, abs=1e-4)
    assert calibrated.temperatures == pytest.approx(wanted.temperatures, abs=1e-2)
    assert record["weights"] == json.loads((run / "last.calibration.json").read_text())["weights"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="has no GPU")
def test_averaged_weights_are_trained_and_evaluated_on_the_gpu(image_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=(str(image_folder),), network="wide_resnet10_1", epochs=2, batch_size=40, image_size=16, ema=0.9
    )
    evaluation = train(config, tmp_path / "run", report=lambda _: None)
    assert evaluation is not None
    assert evaluation == evaluate_run(tmp_path / "run", report=lambda _: None)
