"""Synthetic images that replace photographs in tests."""

import numpy as np
from PIL import Image


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Draw a smooth image of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 20 + 2, width // 20 + 2, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
