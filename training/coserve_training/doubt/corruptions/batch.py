"""A batch of images to corrupt."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from coserve_training.doubt.corruptions.draws import Draws

CIFAR_SIDE = 32


@dataclass(frozen=True)
class Batch:
    """Images and their random numbers.

    Attributes:
        pixels: `[N, 3, H, W]` float32 in [0, 1].
        draws: random numbers for each image.
    """

    pixels: Tensor
    draws: Draws

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.pixels.shape[2]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.pixels.shape[3]

    @property
    def scale(self) -> float:
        """Length of the shorter side, in sides of a CIFAR image: lengths in pixels are multiplied by it."""
        return min(self.height, self.width) / CIFAR_SIDE


Corruption = Callable[[Batch, int], Tensor]
"""Takes images and a severity from 0 to 4; returns pixels like `Batch.pixels`, which may exceed [0, 1]."""
