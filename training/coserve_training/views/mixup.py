"""Mixup: blends of pairs of images and of their classes (arXiv 1710.09412)."""

import torch
from torch import Tensor, nn


def mix_up(
    views: list[Tensor], targets: Tensor, num_classes: int, alpha: float
) -> tuple[list[Tensor], Tensor]:
    """Blend pairs of images and their classes.

    All members share the pairs and the mixing weight. Otherwise co-training would compare predictions for
    different targets (paper, section III-C).

    Args:
        views: S views `[N, 3, H, W]`.
        targets: classes `[N]`, int64.
        num_classes: C.
        alpha: both parameters of the Beta distribution that the mixing weight is drawn from, positive.

    Returns:
        The blended views, and class probabilities `[N, C]`.
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(targets), device=targets.device)
    one_hot = nn.functional.one_hot(targets, num_classes).float()
    blended = [weight * view + (1 - weight) * view[partner] for view in views]
    return blended, weight * one_hot + (1 - weight) * one_hot[partner]
