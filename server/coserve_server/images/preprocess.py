"""Turn a decoded image into the tensor a network takes."""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from coserve_server.images.decode import check_pixels

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Preprocessing(BaseModel):
    """The `preprocessing` parameter of a repository: how an image becomes a network's input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: PositiveInt
    width: PositiveInt
    resize_size: PositiveInt | None
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of an image's tensor: channels, height, width."""
        return 3, self.height, self.width

    @model_validator(mode="after")
    def _check_crop(self) -> "Preprocessing":
        if self.resize_size is not None and self.resize_size < max(self.height, self.width):
            raise ValueError("resize_size is less than height or width")
        return self


def preprocess(image: Image.Image, how: Preprocessing, max_pixels: int) -> NDArray[np.float32]:
    """Resize, crop and normalise an RGB image.

    Returns:
        `(pixel / 255 - mean) / std`, FP32 `[3, height, width]`.

    Raises:
        BadImageError: the image is so long and thin that it would have more than `max_pixels` when resized.
    """
    if how.resize_size is None:
        size = (how.width, how.height)
    else:
        scale = how.resize_size / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
    if size != image.size:
        check_pixels(size, max_pixels)
        image = image.resize(size, _INTERPOLATIONS[how.interpolation])
    if image.size != (how.width, how.height):
        left = round((image.width - how.width) / 2)
        top = round((image.height - how.height) / 2)
        image = image.crop((left, top, left + how.width, top + how.height))
    factor, shift = _normalisation(how.mean, how.std)
    tensor = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
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
