"""Crop opened images for training and for testing; `coserve_images` decodes them, as it does for serving."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_images.decode import EXACT_PIXELS, OpenedImage
from coserve_images.preprocess import resize, shorter_side

# A random crop's share of the image's area, and its width / height (Inception, arXiv 1409.4842, section 6).
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Square:
    """A square from the centre of an image, whose shorter side is resized first.

    Attributes:
        side: height and width of the square, in pixels.
        resize_size: length that the shorter side is resized to.
        interpolation: `"bilinear"` or `"bicubic"`.
    """

    side: int
    resize_size: int
    interpolation: str

    @property
    def height(self) -> int:
        """Return the height of the square."""
        return self.side

    @property
    def width(self) -> int:
        """Return the width of the square."""
        return self.side


def centre(image: OpenedImage, square: Square) -> Pixels:
    """Cut a square out of an opened image as serving does: `[side, side, 3]` RGB.

    Raises:
        ImageError: the image cannot be decoded.
        ValueError: it is so long and thin that resizing it would take gigabytes.
    """
    check_shape(image.stored_size, square.resize_size)
    return np.asarray(resize(image.decode(shorter_side(square)), square))


def random_crops(
    image: OpenedImage,
    size: int,
    random: np.random.Generator,
    views: int,
    interpolation: str = "bilinear",
    area: tuple[float, float] = CROP_AREA,
) -> Pixels:
    """Draw several crops of an opened image, and resize them: `[views, size, size, 3]` RGB.

    A JPEG is decoded once, at the fraction of its size that the smallest crop needs.

    Raises:
        ImageError: the image cannot be decoded.
    """
    width, height = image.size
    boxes = np.array([random_box(random, width, height, area) for _ in range(views)], float)
    image.reduce(float((boxes[:, 2:] - boxes[:, :2]).min()) / size)
    whole = image.decode()
    bounds = np.array([*whole.size, *whole.size])
    boxes = np.minimum(boxes * bounds / (width, height, width, height), bounds)
    kernel = Image.Resampling[interpolation.upper()]
    crops = [whole.resize((size, size), kernel, box=tuple(box)) for box in boxes.tolist()]
    return np.stack([np.asarray(crop) for crop in crops])


def random_box(
    random: np.random.Generator, width: int, height: int, share: tuple[float, float] = CROP_AREA
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


def check_shape(shape: tuple[int, int], size: int) -> None:
    """Check that the shorter side of an image of `shape` can be resized to `size`.

    Raises:
        ValueError: for an image so long and thin that it would have more than `EXACT_PIXELS` after it.
    """
    if max(shape) / min(shape) * size**2 > max(EXACT_PIXELS, size**2):
        raise ValueError(f"{shape[0]}×{shape[1]} pixels, too long and thin to resize")
