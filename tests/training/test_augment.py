from dataclasses import replace

import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from coserve_training.augment import Views, cut_out, mix_up
from coserve_training.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("x",), network="resnet20", split=2)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("policy", [
    "none", "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet", "randaugment",
])  # fmt: skip
@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_views_are_drawn_anew_and_stay_pixels(
    config: TrainConfig, pixels: Tensor, policy: str, crop: str
) -> None:
    torch.manual_seed(1)
    views = Views(replace(config, policy=policy, crop=crop), 32, CPU)  # type: ignore[arg-type]
    first, second = views.colours(pixels), views.colours(pixels)
    assert first.shape == pixels.shape
    assert not first.requires_grad
    assert 0 <= first.min() <= first.max() <= 1
    assert not torch.equal(first, second)


@pytest.mark.parametrize("policy", ["autoaugment-cifar10", "randaugment"])
def test_a_policy_differs_between_groups_of_a_batch(config: TrainConfig, policy: str) -> None:
    torch.manual_seed(2)
    grey = torch.full((64, 3, 32, 32), 0.3)
    grey[..., ::4] = 0.6
    views = Views(replace(config, policy=policy, flip=False), 32, CPU)  # type: ignore[arg-type]
    means = views.policy(grey[:8]).mean(), views.colours(grey).mean((1, 2, 3))  # type: ignore[misc]
    assert len(means[1].round(decimals=3).unique()) > 4


def test_the_same_seed_draws_the_same_views(config: TrainConfig, pixels: Tensor) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        views = Views(replace(config, policy="autoaugment-cifar10", erasing=0.5, cutout=8), 32, CPU)
        drawn.append(views.holes(views.colours(pixels)))
    assert torch.equal(*drawn)


def test_erasing_takes_its_share_of_images(config: TrainConfig) -> None:
    torch.manual_seed(4)
    views = Views(replace(config, erasing=0.5), 32, CPU)
    erased = (views.holes(torch.ones(2000, 3, 32, 32)) == 0).float().mean((1, 2, 3))
    assert (erased > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0.01 < erased[erased > 0].min() <= erased.max() < 0.4


def test_cutout_zeroes_one_square_per_image_cut_off_at_the_border() -> None:
    torch.manual_seed(5)
    cut = cut_out(torch.ones(500, 2, 20, 24), 8) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    sizes = cut[:, 0].sum((1, 2))
    assert sizes.max() == 64
    assert 16 <= sizes.min() < 64
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, sizes)


def test_cutout_keeps_its_share_of_a_smaller_image(config: TrainConfig) -> None:
    assert Views(replace(config, cutout=16), 16, CPU).cutout == 8


def test_mixup_pairs_all_members_alike() -> None:
    torch.manual_seed(6)
    views = [torch.randn(9, 3, 4, 4), torch.randn(9, 3, 4, 4)]
    targets = torch.arange(9) % 5
    blended, probabilities = mix_up(views, targets, 5, 1.0)
    assert torch.allclose(probabilities.sum(-1), torch.ones(9))
    one_hot = torch.nn.functional.one_hot(targets, 5).float()
    share = (probabilities[targets != 99] * one_hot).sum(-1).min().item()
    # The same pairing explains both members' views and the classes.
    partners = [
        {
            partner
            for partner in range(9)
            if torch.allclose(blended[member][image], share * view[image] + (1 - share) * view[partner])
        }
        for image in range(9)
        for member, view in enumerate(views)
    ]
    for first, second in zip(partners[::2], partners[1::2], strict=True):
        assert first == second
        assert len(first) == 1
    paired = [next(iter(first)) for first in partners[::2]]
    assert sorted(paired) == list(range(9))
    assert torch.allclose(probabilities, share * one_hot + (1 - share) * one_hot[paired], atol=1e-6)


def test_mixups_share_follows_the_beta_distribution() -> None:
    torch.manual_seed(7)
    targets = torch.tensor([0, 1])
    shares = torch.stack([mix_up([torch.zeros(2, 3, 1, 1)], targets, 2, 0.2)[1][0, 0] for _ in range(2000)])
    edges = ((shares < 0.1) | (shares > 0.9)).float().mean().item()
    # Half of the pairings are of an image with itself.
    ends = 2 * float(beta(0.2, 0.2).cdf(0.1))
    assert edges == pytest.approx(0.5 + 0.5 * ends, abs=0.04)
