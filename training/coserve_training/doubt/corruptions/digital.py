"""Contrast, distortion, and what remains after resizing and compression."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coserve_training.doubt.corruptions import geometry
from coserve_training.doubt.corruptions.batch import Batch


def contrast(batch: Batch, severity: int) -> Tensor:
    """Draw each channel's values towards their mean."""
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity]
    mean = batch.pixels.mean((2, 3), keepdim=True)
    return (batch.pixels - mean) * kept + mean


def elastic_transform(batch: Batch, severity: int) -> Tensor:
    """Skew the image at random, and then stretch parts of it.

    From one severity to the next, the image is skewed less and stretched more.
    """
    stretch, smoothness, skew = (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[severity]
    side = min(batch.height, batch.width)
    x, y = _skew(batch, skew * side)
    skewed = geometry.sample(batch.pixels, x, y, "reflection")
    if not stretch:
        return skewed
    sigma = smoothness * side
    radius = int(3 * sigma + 0.5)
    weights = geometry.gaussian(sigma, radius)
    # Noise beyond the borders makes up for the pixels that the convolution takes.
    noise = 2 * batch.draws.uniform(2, batch.height + 2 * radius, batch.width + 2 * radius) - 1
    smooth = geometry.convolve(geometry.convolve(noise, weights[None]), weights[:, None])
    moves = stretch * side * smooth
    x, y = geometry.coordinates(batch.height, batch.width)
    return geometry.sample(skewed, x + moves[:, 0], y + moves[:, 1], "reflection")


def pixelate(batch: Batch, severity: int) -> Tensor:
    """Reduce the image, and enlarge it again without interpolation."""
    kept = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]
    small = max(1, int(batch.width * kept)), max(1, int(batch.height * kept))
    size = batch.width, batch.height
    box = Image.Resampling.BOX
    return _stack([image.resize(small, box).resize(size, box) for image in _images(batch)])


def jpeg_compression(batch: Batch, severity: int) -> Tensor:
    """Compress the image as a JPEG of low quality."""
    quality = (80, 65, 58, 50, 40)[severity]
    compressed = list[Image.Image]()
    for image in _images(batch):
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        compressed.append(Image.open(content))
    return _stack(compressed)


def _skew(batch: Batch, distance: float) -> tuple[Tensor, Tensor]:
    """Return where each pixel comes from `[N, H, W]`, if three points are moved by up to `distance`."""
    middle = torch.tensor([batch.width // 2, batch.height // 2]).double()
    reach = min(batch.height, batch.width) // 3
    points = middle + reach * torch.tensor([[1, 1], [-1, 1], [-1, -1]])
    moved = points + distance * (2 * batch.draws.uniform(3, 2).double() - 1)
    # The affine map of a point (x, y, 1) that takes the moved points back.
    inverse = torch.linalg.solve(_with_one(moved), points.expand(len(moved), -1, -1))
    pixels = _with_one(torch.stack(geometry.coordinates(batch.height, batch.width), -1).double())
    sources = torch.einsum("hwi,nij->nhwj", pixels, inverse).float()
    return sources[..., 0], sources[..., 1]


def _with_one(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[..., :1])], -1)


def _images(batch: Batch) -> list[Image.Image]:
    array = (batch.pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image) for image in array]


def _stack(images: list[Image.Image]) -> Tensor:
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
