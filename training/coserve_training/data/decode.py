"""Crop opened images for training and for testing; `coserve_images` decodes them, as it does for serving."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_images.decode import EXACT_PIXELS, OpenedImage
from coserve_images.preprocess import resize

# A random crop's share of the image's area, and its width / height (Inception, arXiv 1409.4842, section 6).
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Square:
    """Resizing of the shorter side to `resize_size`, before the central square is cut out."""

    resize_size: int
    interpolation: str = "bilinear"

    @property
    def height(self) -> int:
        """Return the height of the square."""
        return self.resize_size

    @property
    def width(self) -> int:
        """Return the width of the square."""
        return self.resize_size


def centre(image: OpenedImage, size: int) -> Pixels:
    """Resize an opened image's shorter side to `size` and cut out the centre: `[size, size, 3]` RGB.

    Raises:
        ImageError: the image cannot be decoded.
        ValueError: it is so long and thin that resizing it would take gigabytes.
    """
    check_shape(image.stored_size, size)
    return np.asarray(resize(image.decode(size), Square(size)))


def random_crops(image: OpenedImage, size: int, random: np.random.Generator, views: int) -> Pixels:
    """Draw several crops of an opened image, and resize them: `[views, size, size, 3]` RGB.

    A JPEG is decoded once, at the fraction of its size that the smallest crop needs.

    Raises:
        ImageError: the image cannot be decoded.
    """
    width, height = image.size
    boxes = np.array([random_box(random, width, height) for _ in range(views)], float)
    image.reduce(float((boxes[:, 2:] - boxes[:, :2]).min()) / size)
    whole = image.decode()
    bounds = np.array([*whole.size, *whole.size])
    boxes = np.minimum(boxes * bounds / (width, height, width, height), bounds)
    crops = [whole.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes.tolist()]
    return np.stack([np.asarray(crop) for crop in crops])


def random_box(random: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Draw a crop of random area, aspect ratio and position: left, top, right and bottom in pixels."""
    for _ in range(10):
        area = width * height * random.uniform(*CROP_AREA)
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


def check_shape(shape: tuple[int, int], size: int) -> None:
    """Check that the shorter side of an image of `shape` can be resized to `size`.

    Raises:
        ValueError: for an image so long and thin that it would have more than `EXACT_PIXELS` after it.
    """
    if max(shape) / min(shape) * size**2 > max(EXACT_PIXELS, size**2):
        raise ValueError(f"{shape[0]}×{shape[1]} pixels, too long and thin to resize")
