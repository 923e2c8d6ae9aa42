"""RandAugment (arXiv 1909.13719) with magnitudes out of 10, as in timm's `rand-m9-mstd0.5`."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from coserve_training.views.operations import MOVES, RECOLOURS, Colour

MAX_MAGNITUDE = 10
PROBABILITY = 0.5
"""Probability of each operation that was chosen."""
INTERPOLATIONS = (Resampling.BILINEAR, Resampling.BICUBIC)

MOVED = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45, "Rotate": 30.0}
"""Amounts at the largest magnitude; at others in proportion. They take either sign with equal chance."""
RECOLOURED: dict[str, Callable[[float], float]] = {
    "AutoContrast": lambda _: 0,
    "Equalize": lambda _: 0,
    "Invert": lambda _: 0,
    "Posterize": lambda share: int(4 * share),
    "Solarize": lambda share: int(256 * share),
    "SolarizeAdd": lambda share: int(110 * share),
    "Color": lambda share: 0.1 + 1.8 * share,
    "Contrast": lambda share: 0.1 + 1.8 * share,
    "Brightness": lambda share: 0.1 + 1.8 * share,
    "Sharpness": lambda share: 0.1 + 1.8 * share,
}
"""Amounts by the share of the largest magnitude."""
OPERATIONS = (*MOVED, *RECOLOURED)


class RandAugment:
    """Applies some random operations to an image, each with a probability of a half.

    Args:
        operations: how many to choose, with replacement.
        magnitude: 0 to 10.
        deviation: standard deviation of the magnitude, which is drawn anew for each operation.
        fill: colour of what moves into the image.
    """

    def __init__(self, operations: int, magnitude: float, deviation: float, fill: Colour) -> None:
        self.operations = operations
        self.magnitude = magnitude
        self.deviation = deviation
        self.fill = fill

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """Return an augmented image, drawn from `random`."""
        for chosen in random.integers(len(OPERATIONS), size=self.operations):
            if random.random() < PROBABILITY:
                image = self._apply(OPERATIONS[chosen], image, random)
        return image

    def _apply(self, name: str, image: Image.Image, random: np.random.Generator) -> Image.Image:
        magnitude = random.normal(self.magnitude, self.deviation)
        share = min(1.0, max(0.0, magnitude / MAX_MAGNITUDE))
        if name in RECOLOURED:
            return RECOLOURS[name](image, RECOLOURED[name](share))
        sign = 1 if random.random() < 0.5 else -1
        resample = INTERPOLATIONS[random.integers(len(INTERPOLATIONS))]
        return MOVES[name](image, sign * share * MOVED[name], resample, self.fill)
