from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from coserve_training.config import TrainConfig
from coserve_training.views.policies import POLICY_GROUP, apply_policy, make_policy


@pytest.mark.parametrize("name", [
    "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet", "randaugment",
])  # fmt: skip
def test_every_policy_changes_images(config: TrainConfig, pixels: Tensor, name: str) -> None:
    torch.manual_seed(2)
    policy = make_policy(replace(config, policy=name), torch.device("cpu"))  # type: ignore[arg-type]
    assert policy is not None
    assert (apply_policy(policy, pixels) != pixels).flatten(1).any(1).float().mean() > 0.5


class Brighter(nn.Module):
    """A policy that remembers how many images it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls.append(len(pixels))
        return 2 * pixels


def test_every_few_images_have_a_sub_policy_of_their_own(pixels: Tensor) -> None:
    policy = Brighter()
    assert torch.equal(apply_policy(policy, pixels[:20]), (2 * pixels[:20]).clamp(0, 1))
    assert policy.calls == [POLICY_GROUP, POLICY_GROUP, 4]
