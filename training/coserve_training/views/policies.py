"""The recipe's augmentation policy: AutoAugment or RandAugment."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.views.autoaugment import POLICIES, AutoAugment
from coserve_training.views.operations import Colour
from coserve_training.views.randaugment import RandAugment

Policy = Callable[[Image.Image, np.random.Generator], Image.Image]


def make_policy(config: TrainConfig, mean: Colour) -> Policy | None:
    """Return the recipe's policy; None if it has none.

    Args:
        config: the recipe.
        mean: mean colour of the training images, with which RandAugment fills what moves into an image.
    """
    if config.policy == "none":
        return None
    if config.policy == "randaugment":
        return RandAugment(
            config.policy_operations, config.policy_magnitude, config.policy_magnitude_std, mean
        )
    (name,) = (name for name in POLICIES if config.policy == f"autoaugment-{name}")
    return AutoAugment(name)


def apply_policy(policy: Policy, pixels: Tensor) -> Tensor:
    """Apply a policy to images `[N, 3, H, W]` in [0, 1], one by one."""
    random = np.random.default_rng(int(torch.randint(2**62, ())))
    images = (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    applied = np.stack([np.asarray(policy(Image.fromarray(image), random)) for image in images])
    return torch.from_numpy(applied).to(pixels.device).permute(0, 3, 1, 2).float() / 255
