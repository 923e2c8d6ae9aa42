"""Turn a decoded image into the tensor a network takes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coserve_images.bounds import MAX_PIXELS, check_pixels
from coserve_images.orientation import Box


class Resizing(Protocol):
    """The size of a network's input, and how an image is brought to it.

    Attributes:
        resize_size: length in pixels that the shorter side is resized to before the central crop; None
            resizes to `height` x `width` without keeping proportions.
        interpolation: `"bilinear"` or `"bicubic"`, both antialiased.
    """

    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def resize_size(self) -> int | None: ...  # noqa: D102
    @property
    def interpolation(self) -> str: ...  # noqa: D102


class Preprocessing(Resizing, Protocol):
    """How an image becomes a network's input; `mean` and `std` per channel, in units of pixel / 255."""

    @property
    def mean(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def std(self) -> Sequence[float]: ...  # noqa: D102


def shorter_side(how: Resizing) -> int:
    """Return the least length that the shorter side of an image needs in order not to be enlarged."""
    return how.resize_size or max(how.height, how.width)


def resized_size(width: float, height: float, how: Resizing) -> tuple[int, int]:
    """Return what an image's width and height become before the central crop."""
    if how.resize_size is None:
        return how.width, how.height
    scale = how.resize_size / min(width, height)
    return round(width * scale), round(height * scale)


def resize(
    image: Image.Image, how: Resizing, max_pixels: int = MAX_PIXELS, box: Box | None = None
) -> Image.Image:
    """Resize an RGB image and cut out its centre; one of the right size is not resampled.

    Args:
        image: the image.
        how: the size wanted.
        max_pixels: the limit on width times height when resized.
        box: the part of the image to use, to fractions of a pixel; all of it by default.

    Raises:
        ImageError: the image is so long and thin that it would have more than `max_pixels` when resized.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    size = resized_size(right - left, bottom - top, how)
    if (0, 0, *size) != (left, top, right, bottom):
        check_pixels(size, max_pixels)
        image = image.resize(size, Image.Resampling[how.interpolation.upper()], (left, top, right, bottom))
    if image.size != (how.width, how.height):
        left = round((image.width - how.width) / 2)
        top = round((image.height - how.height) / 2)
        image = image.crop((left, top, left + how.width, top + how.height))
    return image


def preprocess(
    image: Image.Image, how: Preprocessing, max_pixels: int = MAX_PIXELS, box: Box | None = None
) -> NDArray[np.float32]:
    """Resize, crop and normalise an RGB image; for arguments and errors see `resize`.

    Returns:
        `(pixel / 255 - mean) / std`, FP32 `[3, height, width]`.
    """
    return normalise(np.asarray(resize(image, how, max_pixels, box)), how.mean, how.std)


def normalise(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Normalise images `[..., H, W, 3]`, by `mean` and `std` per channel in units of pixel / 255.

    Returns:
        `(pixel / 255 - mean) / std`, FP32 `[..., 3, H, W]`.
    """
    factor, shift = _normalisation(tuple(mean), tuple(std))
    tensor = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    tensor *= factor
    tensor += shift
    return tensor


@lru_cache
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the factor for 8-bit channels and the shift to add then, both `[3, 1, 1]`."""
    factor = 1 / (255 * np.array(std))
    shift = -np.array(mean) / np.array(std)
    return factor.astype(np.float32)[:, None, None], shift.astype(np.float32)[:, None, None]
