"""The recipe's augmentation policy: AutoAugment or RandAugment."""

from collections.abc import Callable

import numpy as np
from PIL import Image

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
