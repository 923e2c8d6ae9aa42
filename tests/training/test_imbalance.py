"""Class weights and balanced sampling."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from coserve_training.config import TrainConfig
from coserve_training.data import Split
from coserve_training.data.order import BatchOrder
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


def test_weights_scale_the_cross_entropy_of_their_class() -> None:
    logits = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 0, 0, 1, 2])
    weights = torch.tensor([0.5, 2.0, 2.0])
    expected = sum(
        (weights[targets] * F.cross_entropy(member, targets, reduction="none")).mean() for member in logits
    )
    assert torch.allclose(co_training_loss(logits, targets, 0.0, class_weights=weights), expected)
    soft = F.one_hot(targets, 3).float()
    assert torch.allclose(co_training_loss(logits, soft, 0.0, class_weights=weights), expected)


def test_both_are_options_of_recipes_and_leave_old_hashes_alone(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('sampling = "balanced"\nclass_weights = "balanced"\nepochs = 1\n')
    given = {"data": (str(image_folder),), "network": "wide_resnet10_1", "batch_size": 60, "mixup": 0.2}
    config = TrainConfig.from_json(with_recipe(str(tmp_path / "mine.toml"), given))
    plain = replace(config, sampling="shuffled", class_weights="none")
    assert len(set(map(recipe_hash, (config, plain, replace(config, sampling="shuffled"))))) == 3
    assert train(config, tmp_path / "run", report=lambda _: None) is not None
