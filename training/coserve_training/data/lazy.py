"""Images that are decoded when they are read: photographs, of which memory holds too few."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from coserve_training.data.decode import Pixels, centre, random_crops
from coserve_training.data.files import StoredFile
from coserve_training.errors import DataError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RandomCrops:
    """Crops of random area, proportions and place, drawn from seed, epoch and index alone.

    Each member learns from a crop of its own (the paper's views). They are cut from one decoded photograph:
    decoding costs more than cutting, and a crop from a photograph already reduced to the network's size would
    be blurred.
    """

    views: int
    """Crops of each image, one for each member."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images read by index like an array `[N, size, size, 3]`; with crops, `[views, N, size, size, 3]`."""

    sources: npt.NDArray[Any]
    """`StoredFile`s `[N]`, or images of another size `[N, H, W, 3]` uint8."""
    size: int
    crops: RandomCrops | None = None
    """None cuts out the centre, by the rule that serving follows."""
    workers: int = 0
    """Processes that decode batches ahead."""
    skip_corrupt: bool = False
    replaced: list[str] = field(default_factory=list)
    """Images that became unreadable after they were checked, each with its reason: others of their class are
    read instead."""

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, indices: Any) -> Pixels:
        return self.read(np.arange(len(self))[indices])[0]

    def select(self, indices: Any) -> "LazyImages":
        """Some of the images, by index or by a mask `[N]`."""
        return replace(self, sources=self.sources[indices], replaced=[])

    def centred(self) -> "LazyImages":
        """The same images, whole rather than cropped at random."""
        return replace(self, crops=None, replaced=[])

    def read(
        self, indices: Indices, epoch: int = 0, substitutes: Callable[[int], Indices] | None = None
    ) -> tuple[Pixels, list[str]]:
        """Decode images, one after another.

        Args:
            indices: `[N]`.
            epoch: that random crops are drawn for.
            substitutes: given an index, those whose images may take the place of one that cannot be decoded.

        Returns:
            Pixels, and which images could not be decoded and why.

        Raises:
            DataError: naming images that cannot be decoded and have no substitute that can.
        """
        images, failures = list[Pixels](), list[str]()
        for index in indices.tolist():
            image, tried = self.attempt(index, epoch), list[str]()
            others = iter(substitutes(index) if substitutes and isinstance(image, str) else ())
            while isinstance(image, str):
                tried.append(image)
                if (other := next(others, None)) is None:
                    raise DataError(f"images became unreadable while they were used: {'; '.join(tried)}")
                image = self.attempt(int(other), epoch)
            images.append(image)
            failures += tried
        if not images:  # one of several processes has no share of the last batch
            return np.empty((0, self.size, self.size, 3), np.uint8), failures
        return np.stack(images, axis=0 if self.crops is None else 1), failures

    def attempt(self, index: int, epoch: int = 0) -> Pixels | str:
        """An image `[size, size, 3]` or its crops `[views, size, size, 3]`; or its name and what is wrong."""
        try:
            return self._decode(index, epoch)
        # Pillow's plugins raise whatever their parser met: struct.error, SyntaxError, EOFError and others.
        except Exception as error:
            return f"{self.sources[index].name} ({reason(error)})"

    def _decode(self, index: int, epoch: int) -> Pixels:
        with open_image(self.sources[index]) as image:
            if self.crops is None:
                return centre(image, self.size)
            random = np.random.default_rng([self.crops.seed, epoch, index])
            return random_crops(image, self.size, random, self.crops.views)


@contextmanager
def open_image(source: StoredFile | Pixels) -> Iterator[Image.Image]:
    """Open an image without decoding it yet."""
    if isinstance(source, StoredFile):
        with source.open() as stream, Image.open(stream) as image:
            yield image
    else:
        yield Image.fromarray(source)


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).replace("\n", " ")
