"""Random erasing (arXiv 1708.04896) and cutout (arXiv 1708.04552)."""

import math

import torch
from torch import Tensor

from coserve_training.config import TrainConfig

ATTEMPTS = 10
"""Rectangles to draw for an image until one fits into it. If none does, nothing is erased."""


def erase_parts(images: Tensor, config: TrainConfig) -> Tensor:
    """Erase and cut out parts of normalised images `[N, 3, H, W]`, leaving 0, the mean colour.

    Cutout's square shrinks in proportion to the image.
    """
    if config.erasing:
        images = erase(images, config.erasing, config.erasing_area, config.erasing_ratio)
    side = round(config.cutout * images.shape[-1] / config.image_size)
    return cut_out(images, side) if side else images


def erase(
    images: Tensor, probability: float, area: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Zero a random rectangle in some of the images.

    Args:
        images: `[N, C, H, W]`.
        probability: share of the images to change.
        area: smallest and largest share of the image that a rectangle covers.
        ratio: smallest and largest height / width of a rectangle.
    """
    count, _, height, width = images.shape
    shape = (count, ATTEMPTS)
    areas = torch.empty(shape, device=images.device).uniform_(*area) * height * width
    ratios = torch.empty(shape, device=images.device).uniform_(*map(math.log, ratio)).exp()
    heights = (areas * ratios).sqrt().round()
    widths = (areas / ratios).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    erased = fits.any(1, keepdim=True) & (torch.rand(count, 1, device=images.device) < probability)
    rows = _choose_span(heights.gather(1, first), height)
    columns = _choose_span(widths.gather(1, first), width)
    return _fill(images, rows & erased, columns)


def cut_out(images: Tensor, side: int) -> Tensor:
    """Zero one square per image, centred anywhere and clipped at the border.

    Args:
        images: `[N, C, H, W]`.
        side: side of the square, in pixels.
    """
    spans = []
    for length in images.shape[2:]:
        first = torch.randint(length, (len(images), 1), device=images.device) - side // 2
        position = torch.arange(length, device=images.device)
        spans.append((position >= first) & (position < first + side))
    return _fill(images, *spans)


def _choose_span(lengths: Tensor, side: int) -> Tensor:
    """Mark a random span of each length `[N, 1]` within the side, as `[N, side]`."""
    first = (torch.rand(lengths.shape, device=lengths.device) * (side - lengths + 1)).floor()
    position = torch.arange(side, device=lengths.device)
    return (position >= first) & (position < first + lengths)


def _fill(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Zero the pixels in marked rows `[N, H]` and columns `[N, W]`."""
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)
