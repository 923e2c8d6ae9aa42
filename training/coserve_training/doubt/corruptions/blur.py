"""Blur of a lens, of glass, and of movement."""

import math

import torch
from torch import Tensor

from coserve_training.doubt.corruptions import geometry
from coserve_training.doubt.corruptions.batch import Batch


def defocus_blur(batch: Batch, severity: int) -> Tensor:
    """Spread each pixel over a disk with a soft edge."""
    radius, edge = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity]
    radius *= batch.scale
    around = math.ceil(batch.scale)
    # One more pixel on each side, for the edge.
    reach = math.floor(radius) + around
    x, y = geometry.coordinates(2 * reach + 1, 2 * reach + 1)
    disk = ((x - reach) ** 2 + (y - reach) ** 2 <= radius**2).float()
    weights = geometry.gaussian(edge * batch.scale, around)
    soft = geometry.blur(disk[None, None], weights[:, None] * weights)[0, 0]
    return geometry.blur(batch.pixels, soft / soft.sum())


def glass_blur(batch: Batch, severity: int) -> Tensor:
    """Take each pixel from a near one, between two slight blurs.

    The authors' code is written to exchange pixels, but copies them; so does this, to be as strong.
    """
    sigma, reach, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[severity]
    sigma *= batch.scale
    reach = max(1, round(reach * batch.scale))
    pixels = geometry.gaussian_blur(batch.pixels, sigma)
    x, y = geometry.coordinates(batch.height, batch.width)
    # Drawn for the most rounds, so that the first round is the same in each severity.
    moves = batch.draws.integers(-reach, reach, 2, 2, batch.height, batch.width)
    for across, down in moves.permute(1, 2, 0, 3, 4)[:rounds]:
        pixels = geometry.sample(pixels, x + across, y + down)
    return geometry.gaussian_blur(pixels, sigma)


def motion_blur(batch: Batch, severity: int) -> Tensor:
    """Move the camera along a line, up to 45° from the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity]
    angles = torch.deg2rad(90 * batch.draws.uniform() - 45)
    return geometry.motion_blur(batch.pixels, angles, radius * batch.scale, sigma * batch.scale)


def zoom_blur(batch: Batch, severity: int) -> Tensor:
    """Move the camera forward."""
    # The authors' ranges, np.arange(1, 1.06, 0.01) and the next one, include their ends through rounding.
    steps = (7, 12, 16, 21, 26)[severity]
    total = batch.pixels.clone()
    for step in range(steps):
        total += geometry.zoom(batch.pixels, 1 + step / 100)
    return total / (steps + 1)
