"""Cut squares out of opened images; `coserve_images` decodes them, as it does for serving."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_images.decode import OpenedImage
from coserve_images.preprocess import resize, shorter_side

Pixels = npt.NDArray[np.uint8]
RESIZED_PIXELS = 50_000_000
"""The most that an image may have once its shorter side is resized."""


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


def make_square(image: OpenedImage, square: Square) -> Image.Image:
    """Cut a square out of an opened image as serving does.

    Raises:
        ImageError: the image cannot be decoded.
        ValueError: it is so long and thin that resizing it would take gigabytes.
    """
    check_shape(image.stored_size, square.resize_size)
    decoded = image.decode(shorter_side(square))
    return resize(decoded.image, square, box=decoded.box)


def check_shape(shape: tuple[int, int], size: int) -> None:
    """Check that the shorter side of an image of `shape` can be resized to `size`.

    Raises:
        ValueError: for an image so long and thin that it would have more than `RESIZED_PIXELS` after it.
    """
    if max(shape) / min(shape) * size**2 > max(RESIZED_PIXELS, size**2):
        raise ValueError(f"{shape[0]}×{shape[1]} pixels, too long and thin to resize")
