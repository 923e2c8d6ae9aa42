"""Random crops and flips."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from coserve_images.decode import OpenedImage

CROP_RATIO = (3 / 4, 4 / 3)
"""A crop's width / height before it is resized (Inception, arXiv 1409.4842, section 6)."""


def crop_photograph(
    image: OpenedImage,
    size: int,
    area: tuple[float, float],
    resampling: Image.Resampling,
    randoms: Sequence[np.random.Generator],
) -> list[Image.Image]:
    """Draw a crop of an opened image from each generator, and resize it to `size` × `size`.

    Decoding costs more than cropping, so the crops share it: a JPEG is decoded once, at the fraction of its
    size that the smallest crop needs.

    Args:
        image: the image, not decoded yet.
        size: height and width of the crops once they are resized.
        area: smallest and largest share of the image that a crop covers.
        resampling: how crops are resized.
        randoms: a generator for each crop.

    Raises:
        ImageError: the image cannot be decoded.
    """
    width, height = image.size
    boxes = np.array([draw_box(random, width, height, area) for random in randoms], float)
    image.reduce(float((boxes[:, 2:] - boxes[:, :2]).min()) / size)
    whole, (left, top, right, bottom) = image.decode()
    corner = np.array([left, top] * 2)
    boxes *= np.array([right - left, bottom - top] * 2) / (width, height, width, height)
    boxes = np.clip(boxes + corner, corner, (right, bottom, right, bottom))
    return [whole.resize((size, size), resampling, box=tuple(box)) for box in boxes.tolist()]


def draw_box(
    random: np.random.Generator, width: int, height: int, share: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw a crop of random area, aspect ratio and position: left, top, right and bottom in pixels."""
    for _ in range(10):
        area = width * height * random.uniform(*share)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(width - w + 1))
            top = int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * CROP_RATIO[1])))
    h = max(1, min(height, round(width / CROP_RATIO[0])))
    left = (width - w) // 2
    top = (height - h) // 2
    return left, top, left + w, top + h


def shift(image: Image.Image, random: np.random.Generator, reflect: bool = False) -> Image.Image:
    """Shift a square image by up to an eighth of its side in both directions.

    Args:
        image: the image.
        random: draws the shift.
        reflect: fill the border with the mirrored image instead of black.
    """
    most = max(1, image.width // 8)
    left, top = random.integers(-most, most + 1, 2).tolist()
    if not reflect:
        return image.crop((left, top, left + image.width, top + image.height))
    last = image.width - 1
    rows, columns = (last - abs(last - abs(np.arange(image.width) + first)) for first in (top, left))
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def flip(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Mirror half of the images."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image
