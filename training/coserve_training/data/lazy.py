"""Images that are decoded when they are read, for data sets of photographs too large for memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_images import decode
from coserve_images.decode import OpenedImage
from coserve_images.errors import UnknownFormatError
from coserve_images.formats import OWN_FORMATS
from coserve_training.data.decode import CROP_AREA, Pixels, Square, centre, random_crops
from coserve_training.data.files import StoredFile
from coserve_training.errors import DataError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RandomCrops:
    """Crops of random area, aspect ratio and position, which depend only on seed, epoch and image index.

    Each member learns from a crop of its own (the paper's views). All crops are cut from one decoded
    photograph: decoding costs more than cutting, and crops from a photograph already reduced to the network's
    size would be blurred.

    Attributes:
        views: number of crops of each image, one per member.
        seed: seed of the random numbers.
        area: smallest and largest share of the photograph that a crop covers.
    """

    views: int
    seed: int = 0
    area: tuple[float, float] = CROP_AREA


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that are indexed like an array `[N, size, size, 3]`, or `[views, N, size, size, 3]` with crops.

    Attributes:
        sources: `StoredFile`s `[N]`, or images of another size `[N, H, W, 3]` uint8.
        size: height and width in pixels to decode to.
        crops: random crops; None cuts out the centre, as serving does.
        workers: number of processes that decode batches ahead of time.
        skip_corrupt: replace images that become unreadable by others of their class.
        resize_size: length that the shorter side is resized to before the centre is cut out; by default
            `size`.
        interpolation: `"bilinear"` or `"bicubic"`, for crops and centres.
        replaced: images that were replaced, each with its reason.
    """

    sources: npt.NDArray[Any]
    size: int
    crops: RandomCrops | None = None
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

    def uncropped(self) -> "LazyImages":
        """Return the same images without random crops."""
        return replace(self, crops=None, replaced=[])

    def read(
        self, indices: Indices, epoch: int = 0, substitutes: Callable[[int], Indices] | None = None
    ) -> tuple[Pixels, list[str]]:
        """Decode images one by one.

        Args:
            indices: indices of the images, `[N]`.
            epoch: epoch to draw random crops for.
            substitutes: returns the indices of images that may replace an image that cannot be decoded.

        Returns:
            Pixels, and the names of the images that could not be decoded, with reasons.

        Raises:
            DataError: for images that cannot be decoded and have no substitute that can; it names them.
        """
        images = list[Pixels]()
        failures = list[str]()
        for index in indices.tolist():
            image = self.attempt(index, epoch)
            tried = list[str]()
            others = iter(substitutes(index) if substitutes and isinstance(image, str) else ())
            while isinstance(image, str):
                tried.append(image)
                if (other := next(others, None)) is None:
                    raise DataError(f"images became unreadable while they were used: {'; '.join(tried)}")
                image = self.attempt(int(other), epoch)
            images.append(image)
            failures += tried
        if not images:  # this process has no share of the last batch
            return np.empty((0, self.size, self.size, 3), np.uint8), failures
        return np.stack(images, axis=0 if self.crops is None else 1), failures

    def attempt(self, index: int, epoch: int = 0) -> Pixels | str:
        """Decode an image `[size, size, 3]`, or crops `[views, size, size, 3]`; on failure return why."""
        try:
            return self._decode(index, epoch)
        # Opening a file or a member of a zip fails with errors of many types.
        except Exception as error:
            return f"{self.sources[index].name} ({describe_error(error)})"

    def _decode(self, index: int, epoch: int) -> Pixels:
        with open_image(self.sources[index]) as image:
            if self.crops is None:
                return centre(image, self.square)
            random = np.random.default_rng([self.crops.seed, epoch, index])
            return random_crops(
                image, self.size, random, self.crops.views, self.interpolation, self.crops.area
            )


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
