"""Noise of a sensor."""

import torch
from torch import Tensor

from coserve_training.doubt.corruptions.batch import Batch


def gaussian_noise(batch: Batch, severity: int) -> Tensor:
    """Add normal noise, as in low light."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity]
    return batch.pixels + deviation * batch.draws.normal(*batch.pixels.shape[1:])


def shot_noise(batch: Batch, severity: int) -> Tensor:
    """Count a limited number of photons for each pixel."""
    photons = (500, 250, 100, 75, 50)[severity]
    return batch.draws.poisson(batch.pixels * photons) / photons


def impulse_noise(batch: Batch, severity: int) -> Tensor:
    """Set some values of pixels to 0 or 1."""
    fraction = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    hit = batch.draws.uniform(*batch.pixels.shape[1:]) < fraction
    values = batch.draws.integers(0, 2, *batch.pixels.shape[1:]).float()
    return torch.where(hit, values, batch.pixels)
