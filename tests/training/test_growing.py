"""While training images grow, held-out images have their size, and no epoch is the best one."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.errors import ConfigError, RunError
from coserve_training.module import CoTraining
from coserve_training.runs.folder import load_run
from coserve_training.training_run import train

SIZES = [16, 24, 32, 32]


@pytest.fixture
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(image_folder),), network="wide_resnet10_1", epochs=4, batch_size=60, start_size=16
    )


def test_epochs_are_measured_at_their_size_and_only_full_ones_can_be_best(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    lines: list[str] = []
    forward = CoTraining.forward

    def note(self: CoTraining, views: list[Tensor], step: int = 0) -> Tensor:
        if not self.training:
            measured.append(views[0].shape[-1])
        return forward(self, views, step)

    def right_if_small(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(targets),), float(measured[-1:] in ([16], [24])))

    def stop_at_once(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(CoTraining, "forward", note)
    monkeypatch.setattr("coserve_training.module.mark_correct", right_if_small)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", report=stop_at_once)
    with pytest.raises(RunError, match=r"best.ckpt is missing; has an epoch at full size finished\?"):
        load_run(tmp_path / "run", "best")
    train(config, tmp_path / "run", resume=True, report=lines.append)
    assert measured == SIZES
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert [int(row["image_size"]) for row in rows] == SIZES
    assert [" 16 px " in lines[0], " 24 px " in lines[1]] == [True, True]
    assert not [line for line in lines[2:] if "pixels" in line]
    assert load_run(tmp_path / "run", "best").provenance["training"]["epochs"] == 3  # type: ignore[index]


def test_the_last_epoch_is_at_full_size(config: TrainConfig) -> None:
    values = {name: getattr(config, name) for name in TrainConfig.__dataclass_fields__}
    assert TrainConfig(**values | {"growth_epochs": 3.5}).size_at(3) == 32
    with pytest.raises(ConfigError, match=r"^growth_epochs must be at most 3.5, .* not 3.6$"):
        TrainConfig(**values | {"growth_epochs": 3.6})
