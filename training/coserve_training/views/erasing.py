"""Random erasing (arXiv 1708.04896) and cutout (arXiv 1708.04552)."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from coserve_training.config import TrainConfig

AREA = (0.02, 1 / 3)
"""Share of the image's area that a rectangle covers."""
RATIO = (0.3, 1 / 0.3)
"""Aspect ratio of a rectangle."""


def make_erasing(config: TrainConfig) -> nn.Module | None:
    """Return the recipe's random erasing; None if it has none."""
    if not config.erasing:
        return None
    erasing: nn.Module = K.RandomErasing(scale=AREA, ratio=RATIO, p=config.erasing)
    return erasing


def cut_out(images: Tensor, side: int) -> Tensor:
    """Zero one square per image, centred anywhere and clipped at the border.

    Args:
        images: `[N, C, H, W]`.
        side: side of the square, in pixels.
    """
    count, _, height, width = images.shape
    spans = []
    for length in (height, width):
        first = torch.randint(length, (count, 1), device=images.device) - side // 2
        position = torch.arange(length, device=images.device)
        spans.append((position >= first) & (position < first + side))
    hole = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return images.masked_fill(hole, 0)
