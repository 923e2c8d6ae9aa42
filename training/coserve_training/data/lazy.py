"""Images that are decoded, or augmented, when they are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_images import decode
from coserve_images.decode import OpenedImage
from coserve_images.errors import UnknownFormatError
from coserve_images.formats import OWN_FORMATS
from coserve_training.data.decode import Pixels, Square, make_square
from coserve_training.data.files import StoredFile
from coserve_training.errors import DataError

Indices = npt.NDArray[np.int64]


class Views(Protocol):
    """Draws the members' views of an image (the package `views`)."""

    def draw(self, image: OpenedImage, square: Square, epoch: int, index: int, repeat: int) -> Pixels:
        """Return views `[members, size, size, 3]`.

        Args:
            image: the image, not decoded yet.
            square: the centre of the image, which views that are not cropped at random start from.
            epoch: the epoch, from 0.
            index: index of the image in the split.
            repeat: how many times the image has been drawn before in this epoch.
        """
        ...


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that are indexed like an array `[N, size, size, 3]`.

    With views, batches are `[members, N, size, size, 3]`.

    Attributes:
        sources: `StoredFile`s `[N]`, or images `[N, H, W, 3]` uint8.
        size: height and width in pixels to decode to.
        views: draws the members' views; None cuts out the centre, as serving does.
        workers: number of processes that read batches ahead of time.
        skip_corrupt: replace images that become unreadable by others of their class.
        resize_size: length that the shorter side is resized to before the centre is cut out; by default
            `size`.
        interpolation: `"bilinear"` or `"bicubic"`, for crops and centres.
        replaced: images that were replaced, each with its reason.
    """

    sources: npt.NDArray[Any]
    size: int
    views: Views | None = None
    workers: int = 0
    skip_corrupt: bool = False
    resize_size: int | None = None
    interpolation: str = "bilinear"
    replaced: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def square(self) -> Square:
        """The centre that is cut out of an image if it is not cropped at random."""
        return Square(self.size, self.resize_size or self.size, self.interpolation)

    def __getitem__(self, indices: Any) -> Pixels:
        return self.read(np.arange(len(self))[indices])[0]

    def select(self, indices: Any) -> "LazyImages":
        """Select images by index or by a mask `[N]`."""
        return replace(self, sources=self.sources[indices], replaced=[])

    def read(
        self,
        indices: Indices,
        epoch: int = 0,
        repeats: Indices | None = None,
        substitutes: Callable[[int], Indices] | None = None,
    ) -> tuple[Pixels, list[str]]:
        """Read images one by one.

        Args:
            indices: indices of the images, `[N]`.
            epoch: epoch to draw views for.
            repeats: how many times each image has been drawn before in this epoch, `[N]`; None for never.
            substitutes: returns the indices of images that may replace an image that cannot be decoded.

        Returns:
            Pixels, and the names of the images that could not be decoded, with reasons.

        Raises:
            DataError: for images that cannot be decoded and have no substitute that can; it names them.
        """
        repeats = np.zeros_like(indices) if repeats is None else repeats
        images = list[Pixels]()
        failures = list[str]()
        for index, repeat in zip(indices.tolist(), repeats.tolist(), strict=True):
            image = self.attempt(index, epoch, repeat)
            tried = list[str]()
            others = iter(substitutes(index) if substitutes and isinstance(image, str) else ())
            while isinstance(image, str):
                tried.append(image)
                if (other := next(others, None)) is None:
                    raise DataError(f"images became unreadable while they were used: {'; '.join(tried)}")
                image = self.attempt(int(other), epoch, repeat)
            images.append(image)
            failures += tried
        if not images:  # this process has no share of the last batch
            return np.empty((0, self.size, self.size, 3), np.uint8), failures
        return np.stack(images, axis=0 if self.views is None else 1), failures

    def attempt(self, index: int, epoch: int = 0, repeat: int = 0) -> Pixels | str:
        """Read an image `[size, size, 3]`, or views `[members, size, size, 3]`; on failure return why."""
        source = self.sources[index]
        try:
            with open_image(source) as image:
                if self.views is None:
                    return np.asarray(make_square(image, self.square))
                return self.views.draw(image, self.square, epoch, index, repeat)
        # Opening a file or a member of a zip fails with errors of many types.
        except Exception as error:
            if not isinstance(source, StoredFile):
                raise
            return f"{source.name} ({describe_error(error)})"


@contextmanager
def open_image(source: StoredFile | Pixels) -> Iterator[OpenedImage]:
    """Open an image without decoding it yet."""
    if isinstance(source, StoredFile):
        with source.open() as stream, decode.open_image(stream, formats=OWN_FORMATS) as image:
            yield image
    else:
        yield OpenedImage(Image.fromarray(source))


def describe_error(error: Exception) -> str:
    """Describe in one line why an image cannot be decoded."""
    if isinstance(error, UnknownFormatError):
        return "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).replace("\n", " ")
