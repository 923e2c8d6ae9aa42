"""Corrupted copies of images: fifteen corruptions of five severities.

They follow Hendrycks & Dietterich (arXiv 1903.12261). The corruptions and their strengths are those of
CIFAR-10-C; the images are not. They are made by other code from the test images at hand, and frost is drawn
instead of photographed. Scores are comparable with each other, but only roughly with published ones. Lengths,
which the authors chose for images of 32 × 32 pixels, grow with the image.

noise.py     gaussian_noise, shot_noise, impulse_noise
blur.py      defocus_blur, glass_blur, motion_blur, zoom_blur
weather.py   snow, frost, fog, brightness
digital.py   contrast, elastic_transform, pixelate, jpeg_compression
geometry.py  blurring and moving pixels
batch.py     the images to corrupt
draws.py     their random numbers
"""

import numpy as np
import torch

from coserve_training.doubt.corruptions import blur, digital, noise, weather
from coserve_training.doubt.corruptions.batch import Batch, Corruption
from coserve_training.doubt.corruptions.draws import Draws, Pixels
from coserve_training.errors import ConfigError, DataError

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Pixels, name: str, severity: int, seed: int = 0) -> Pixels:
    """Return corrupted copies of images `[N, H, W, 3]` uint8.

    Args:
        images: the images.
        name: one of `CORRUPTIONS`.
        severity: from 1 to 5.
        seed: non-negative; with the same seed, the same image is corrupted in the same way.

    Raises:
        ConfigError: for an unknown corruption, or a severity or seed out of range.
        DataError: if the images have another shape or type.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"unknown corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be from 1 to 5, not {severity}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"images must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    if not images.size:
        return images.copy()
    images = np.ascontiguousarray(images)  # torch takes no reversed arrays, such as BGR images read as RGB
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    corrupted = CORRUPTIONS[name](Batch(pixels, Draws(images, name, seed)), severity - 1)
    levels = (corrupted.clamp(0, 1) * 255).round().byte()
    return levels.permute(0, 2, 3, 1).contiguous().numpy()
