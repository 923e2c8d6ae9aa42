from dataclasses import replace

import pytest
import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.views import Views

CPU = torch.device("cpu")


@pytest.mark.parametrize("policy", [
    "none", "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet", "randaugment",
])  # fmt: skip
@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_views_are_drawn_anew_and_stay_pixels(
    config: TrainConfig, pixels: Tensor, policy: str, crop: str
) -> None:
    torch.manual_seed(1)
    views = Views(replace(config, policy=policy, crop=crop), 32, CPU)  # type: ignore[arg-type]
    first = views.augment(pixels)
    second = views.augment(pixels)
    assert first.shape == pixels.shape
    assert not first.requires_grad
    assert 0 <= first.min() <= first.max() <= 1
    assert not torch.equal(first, second)


def test_the_same_seed_draws_the_same_views(config: TrainConfig, pixels: Tensor) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        views = Views(replace(config, policy="autoaugment-cifar10", erasing=0.5, cutout=8), 32, CPU)
        drawn.append(views.erase(views.augment(pixels)))
    assert torch.equal(*drawn)


def test_no_augmentation_leaves_images_as_they_are(config: TrainConfig, pixels: Tensor) -> None:
    views = Views(replace(config, crop="none", flip=False), 32, CPU)
    assert torch.equal(views.erase(views.augment(pixels)), pixels)


def test_cutout_shrinks_with_the_image(config: TrainConfig) -> None:
    views = Views(replace(config, cutout=16), 16, CPU)
    cut = views.erase(torch.ones(200, 3, 16, 16)) == 0
    assert cut[:, 0].sum((1, 2)).max() == 8 * 8
