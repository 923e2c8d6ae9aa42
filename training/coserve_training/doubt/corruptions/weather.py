"""Snow, frost, fog and bright light."""

import math

import torch
from torch import Tensor

from coserve_training.doubt.corruptions import geometry
from coserve_training.doubt.corruptions.batch import Batch
from coserve_training.doubt.corruptions.draws import Draws

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
ICE = ((0.20, 0.25, 0.32), (0.85, 0.93, 1.0))
"""Colours of clear and of white frost."""


def snow(batch: Batch, severity: int) -> Tensor:
    """Whiten the image, and let flakes fall in two opposite directions."""
    mean, deviation, size, least, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity]
    noise = mean + deviation * batch.draws.normal(1, batch.height, batch.width)
    flakes = geometry.zoom(noise, size * batch.scale)
    flakes = torch.where(flakes < least, 0, flakes).clamp(0, 1)
    angles = torch.deg2rad(90 * batch.draws.uniform() - 135)
    flakes = geometry.motion_blur(flakes, angles, radius * batch.scale, sigma * batch.scale)
    grey = (batch.pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    white = torch.maximum(batch.pixels, 1.5 * grey + 0.5)
    return kept * batch.pixels + (1 - kept) * white + flakes + flakes.flip(2, 3)


def frost(batch: Batch, severity: int) -> Tensor:
    """Lay drawn frost over the image.

    The authors lay photographs of frost, which are not part of Coserve. Here, the ridges of a fractal stand
    for crystals, in the colours of ice. The weights are the authors'.
    """
    kept, weight = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity]
    cover = _plasma(batch, 2)
    ridges = 1 - (2 * _plasma(batch, 1.4) - 1).abs()
    clear, white = (torch.tensor(colour).view(3, 1, 1) for colour in ICE)
    ice = clear + (white - clear) * (0.4 * cover + 0.6 * ridges**2)
    return kept * batch.pixels + weight * ice


def fog(batch: Batch, severity: int) -> Tensor:
    """Lay fog of uneven density over the image, and keep its brightest level."""
    density, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity]
    brightest = batch.pixels.amax((1, 2, 3), keepdim=True)
    return (batch.pixels + density * _plasma(batch, decay)) * brightest / (brightest + density)


def brightness(batch: Batch, severity: int) -> Tensor:
    """Raise the value of each pixel, in terms of hue, saturation and value."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity]
    value = batch.pixels.amax(1, keepdim=True)
    raised = (value + added).clamp(max=1)
    return torch.where(value > 0, batch.pixels * raised / value.clamp(min=1e-6), raised)


def _plasma(batch: Batch, decay: float) -> Tensor:
    """Return a fractal `[N, 1, H, W]` from 0 to 1 for each image; a higher decay makes it smoother."""
    side = 2 ** math.ceil(math.log2(max(batch.height, batch.width, 2)))
    plane = _midpoints(batch.draws, side, len(batch.pixels), decay)[:, : batch.height, : batch.width]
    low = plane.amin((1, 2), keepdim=True)
    high = plane.amax((1, 2), keepdim=True)
    return ((plane - low) / (high - low).clamp(min=1e-6))[:, None]


def _midpoints(draws: Draws, side: int, images: int, decay: float) -> Tensor:
    """Return fractals `[N, side, side]` by the diamond-square algorithm, on planes that repeat.

    Each midpoint is the mean of its four neighbours plus uniform noise. Midpoints of squares come first, then
    those of diamonds. The noise falls with the square of `decay` from one grid to the next finer one, as in
    the authors' code.
    """
    plane = torch.zeros(images, side, side)
    step = side
    amplitude = 1.0
    while step > 1:
        half = step // 2
        cells = side // step
        noise = amplitude * (2 * draws.uniform(3, cells, cells) - 1)
        corners = plane[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + noise[:, 0]
        plane[:, half::step, half::step] = centres
        rows = (corners + corners.roll(-1, 2) + centres + centres.roll(1, 1)) / 4
        columns = (corners + corners.roll(-1, 1) + centres + centres.roll(1, 2)) / 4
        plane[:, ::step, half::step] = rows + noise[:, 1]
        plane[:, half::step, ::step] = columns + noise[:, 2]
        step = half
        amplitude /= decay**2
    return plane
