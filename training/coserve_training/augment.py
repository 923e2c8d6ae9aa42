"""What members see of the same images: views by kornia, and mixup."""

import kornia.augmentation as K
import torch
from kornia.augmentation.auto import AutoAugment, RandAugment
from torch import Tensor, nn

from coserve_training.config import TrainConfig

POLICY_GROUP = 8
"""kornia draws one sub-policy per call. A call for every few images of a shuffled batch keeps each image's
odds and costs far less than one per image."""


class Views:
    """Draws one member's view of a batch; each call draws anew.

    Not a module: kornia's operations have parameters, which are none of the members'.
    """

    def __init__(self, config: TrainConfig, size: int, device: torch.device) -> None:
        """Prepare views of `size` × `size` pixels; cutout's side keeps its share of the image."""
        geometry = {
            "padded": [K.RandomCrop((size, size), padding=max(1, size // 8))],
            "resized": [],  # cut from the photographs where they are decoded: data/lazy.py
            "none": [],
        }[config.crop]
        if config.flip:
            geometry.append(K.RandomHorizontalFlip())
        self.geometry = K.AugmentationSequential(*geometry).to(device) if geometry else None
        policy = _policy(config)
        self.policy = None if policy is None else policy.to(device)
        erasing = K.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), p=config.erasing)
        self.erasing = erasing if config.erasing else None
        self.cutout = round(config.cutout * size / config.image_size)

    @torch.no_grad()
    def colours(self, pixels: Tensor) -> Tensor:
        """Crop, flip and policy: `[N, 3, H, W]` in [0, 1] to `[N, 3, size, size]` in [0, 1]."""
        view = pixels if self.geometry is None else self.geometry(pixels)
        if self.policy is None:
            return view
        return torch.cat([self.policy(group) for group in view.split(POLICY_GROUP)]).clamp(0, 1)

    @torch.no_grad()
    def holes(self, images: Tensor) -> Tensor:
        """Erasing and cutout, to the mean colour of a normalised `[N, 3, H, W]`."""
        if self.erasing is not None:
            images = self.erasing(images)
        return cut_out(images, self.cutout) if self.cutout else images


def _policy(config: TrainConfig) -> nn.Module | None:
    if config.policy == "none":
        return None
    if config.policy == "randaugment":
        return RandAugment(config.policy_operations, config.policy_magnitude)
    return AutoAugment(config.policy.removeprefix("autoaugment-"))


def cut_out(images: Tensor, side: int) -> Tensor:
    """Zero a square per image, centred anywhere and cut off at the border (arXiv 1708.04552).

    Args:
        images: `[N, C, H, W]`.
        side: of the square, in pixels.
    """
    count, _, height, width = images.shape
    spans = []
    for length in (height, width):
        first = torch.randint(length, (count, 1), device=images.device) - side // 2
        position = torch.arange(length, device=images.device)
        spans.append((position >= first) & (position < first + side))
    hole = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return images.masked_fill(hole, 0)


def mix_up(
    views: list[Tensor], targets: Tensor, num_classes: int, alpha: float
) -> tuple[list[Tensor], Tensor]:
    """Blend pairs of images and their classes (arXiv 1710.09412).

    One pairing and one share serve all members, or co-training would compare predictions of different targets
    (paper, section III-C).

    Args:
        views: S views `[N, 3, H, W]`.
        targets: `[N]` int64 classes.
        num_classes: C.
        alpha: of the Beta distribution that the share is drawn from, positive.

    Returns:
        The blended views, and probabilities `[N, C]` of the classes.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(targets), device=targets.device)
    one_hot = nn.functional.one_hot(targets, num_classes).float()
    blended = [share * view + (1 - share) * view[partner] for view in views]
    return blended, share * one_hot + (1 - share) * one_hot[partner]
