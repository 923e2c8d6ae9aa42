"""Blurring and moving pixels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the x and the y of every pixel, `[H, W]` each."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return x, y


def sample(pixels: Tensor, x: Tensor, y: Tensor, padding: str = "border") -> Tensor:
    """Read pixels `[N, C, H, W]` at coordinates, with bilinear interpolation.

    Args:
        pixels: what to read from.
        x: x of each pixel to return, `[N or 1, H, W]`.
        y: y likewise.
        padding: what lies outside: `"border"` repeats the outermost pixels, `"reflection"` mirrors at them.
    """
    height, width = pixels.shape[2:]
    # Coordinates from -1, the first pixel's centre, to 1, the last one's.
    grid = torch.stack([2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1], -1)
    return F.grid_sample(
        pixels, grid.expand(len(pixels), -1, -1, -1), padding_mode=padding, align_corners=True
    )


def zoom(pixels: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of pixels `[N, C, H, W]`, and cut off what no longer fits."""
    height, width = pixels.shape[2:]
    x, y = coordinates(height, width)
    middle_x = (width - 1) / 2
    middle_y = (height - 1) / 2
    return sample(pixels, middle_x + (x - middle_x)[None] / factor, middle_y + (y - middle_y)[None] / factor)


def gaussian(sigma: float, radius: int) -> Tensor:
    """Return a Gaussian `[2 * radius + 1]` whose sum is 1; a single peak for a `sigma` of 0."""
    distances = torch.arange(-radius, radius + 1).float()
    weights = (-(distances**2) / (2 * max(sigma, 1e-3) ** 2)).exp()
    return weights / weights.sum()


def convolve(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel of `[N, C, H, W]` with `[h, w]`, without padding."""
    height, width = pixels.shape[2:]
    flat = F.conv2d(pixels.reshape(-1, 1, height, width), kernel[None, None])
    return flat.reshape(*pixels.shape[:2], *flat.shape[2:])


def blur(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Convolve with a kernel `[h, w]` of odd sides; the outermost pixels are repeated."""
    height, width = kernel.shape
    padding = (width // 2, width // 2, height // 2, height // 2)
    return convolve(F.pad(pixels, padding, mode="replicate"), kernel)


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur pixels `[N, C, H, W]` with a Gaussian, up to four standard deviations away."""
    weights = gaussian(sigma, math.ceil(4 * sigma))
    return blur(blur(pixels, weights[None]), weights[:, None])


def motion_blur(pixels: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Smear pixels `[N, C, H, W]` to one side along a line, as ImageMagick's motion blur does.

    Args:
        pixels: what to smear.
        angles: direction in each image, in radians, `[N]`.
        radius: half the length of the trail, in pixels.
        sigma: standard deviation of the trail's Gaussian, in pixels.
    """
    x, y = coordinates(*pixels.shape[2:])
    steps = torch.arange(min(2 * radius, 4 * sigma) // 1 + 1)
    weights = (-(steps**2) / (2 * sigma**2)).exp()
    weights /= weights.sum()
    across = angles.cos().view(-1, 1, 1)
    down = angles.sin().view(-1, 1, 1)
    result = torch.zeros_like(pixels)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        result += weight * sample(pixels, x + step * across, y + step * down)
    return result
