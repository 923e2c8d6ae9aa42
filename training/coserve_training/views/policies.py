"""AutoAugment (arXiv 1805.09501) and RandAugment (arXiv 1909.13719), by kornia."""

import torch
from kornia.augmentation.auto import AutoAugment, RandAugment
from torch import Tensor, nn

from coserve_training.config import TrainConfig

POLICY_GROUP = 8
"""Images that share a sub-policy, since kornia draws one per call. In a shuffled batch, each image has the
same odds as with a call of its own, at a fraction of the cost."""


def make_policy(config: TrainConfig, device: torch.device) -> nn.Module | None:
    """Return the recipe's policy; None if it has none."""
    if config.policy == "none":
        return None
    if config.policy == "randaugment":
        policy: nn.Module = RandAugment(config.policy_operations, config.policy_magnitude)
    else:
        policy = AutoAugment(config.policy.removeprefix("autoaugment-"))
    return policy.to(device)


def apply_policy(policy: nn.Module, pixels: Tensor) -> Tensor:
    """Apply a policy to images `[N, 3, H, W]` in [0, 1], with a new sub-policy for every few of them."""
    return torch.cat([policy(group) for group in torch.split(pixels, POLICY_GROUP)]).clamp(0, 1)
