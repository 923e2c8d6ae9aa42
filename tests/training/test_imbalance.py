"""Class weights and balanced sampling."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coserve_training.config import TrainConfig
from coserve_training.data import Split
from coserve_training.data.order import BatchOrder
from coserve_training.errors import ConfigError
from coserve_training.loss import co_training_loss
from coserve_training.recipes import recipe_hash, with_recipe
from coserve_training.training_run import _class_weights, train

CLASSES = np.repeat([0, 1, 2], [90, 9, 1])


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    order = BatchOrder(100, 10, 0, 1, CLASSES)
    draws = torch.cat(list(order)).numpy()
    drawn = draws % 100
    assert len(draws) == len(set(draws.tolist())) == 100
    counts = np.bincount(CLASSES[drawn])
    assert counts.sum() == 100
    assert counts.min() >= 32
    repeats = np.bincount(drawn, minlength=100)
    assert repeats[:90].max() == 1
    assert np.ptp(repeats[90:99]) <= 2
    assert torch.equal(torch.cat(list(order)), torch.from_numpy(draws))
    order.set_epoch(1)
    assert not np.array_equal(torch.cat(list(order)).numpy(), draws)


def test_class_weights_are_inverse_to_the_counts_and_average_to_one() -> None:
    split = Split(np.zeros((100, 1, 1, 3), np.uint8), CLASSES)
    weights = _class_weights(split, 3)
    assert torch.allclose(weights[CLASSES].mean(), torch.tensor(1.0))
    assert torch.allclose(weights * torch.tensor([90.0, 9, 1]), torch.full((3,), 100 / 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_scale_the_cross_entropy_of_the_images_of_their_class(smoothing: float) -> None:
    logits = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 0, 0, 1, 2])
    weights = torch.tensor([0.5, 2.0, 3.0])

    def weighted(targets: torch.Tensor) -> torch.Tensor:
        losses = [
            F.cross_entropy(member, targets, reduction="none", label_smoothing=smoothing) for member in logits
        ]
        return (weights[targets] * torch.stack(losses)).mean(1).sum()

    def loss(targets: torch.Tensor) -> torch.Tensor:
        return co_training_loss(logits, targets, 0.0, label_smoothing=smoothing, class_weights=weights)

    assert torch.allclose(loss(targets), weighted(targets))
    one_hot = F.one_hot(targets, 3).float()
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    assert torch.allclose(loss(mixed), 0.3 * weighted(targets) + 0.7 * weighted(targets.flip(0)))


def test_both_are_options_of_recipes_and_leave_old_hashes_alone(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('class_weights = "balanced"\nepochs = 1\n')
    given = {"data": (str(image_folder),), "network": "wide_resnet10_1", "batch_size": 60, "mixup": 0.2}
    config = TrainConfig.from_json(with_recipe(str(tmp_path / "mine.toml"), given))
    plain = replace(config, class_weights="none")
    assert len(set(map(recipe_hash, (config, plain, replace(plain, sampling="balanced"))))) == 3
    assert train(config, tmp_path / "run", report=lambda _: None) is not None
    with pytest.raises(ConfigError, match=r"would favour rare classes twice; choose one$"):
        replace(config, sampling="balanced")
