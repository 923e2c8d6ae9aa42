"""What a repository says about preprocessing; `coserve_images.preprocess` does it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
