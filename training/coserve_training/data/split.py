"""A labelled data set: labels and splits, with images in memory or decoded when they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_training.data.decode import Pixels
from coserve_training.data.lazy import Indices, LazyImages, Views
from coserve_training.errors import ConfigError

Progress = Callable[[str, int, int], None]
"""Called with the name of the activity, the steps done and the total number of steps."""

Labelled = tuple[list[str], dict[str, tuple[Pixels, npt.NDArray[np.int64]]]]
"""Labels by class index; for each split, images `[N, H, W, 3]` uint8 and their classes `[N]` int64."""

SUBSTITUTES = 8
"""Number of images to try in place of one that became unreadable, before the run ends."""


@dataclass(frozen=True)
class Split:
    """Images `[N, H, W, 3]` uint8 and their classes `[N]` int64."""

    images: Pixels | LazyImages
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Any) -> tuple[Pixels, npt.NDArray[np.int64]]:
        pixels, targets, replaced = self.read((0, np.arange(len(self))[indices]))
        self.note(replaced)
        return pixels, targets

    def select(self, indices: Any) -> "Split":
        """Select images by index or by a mask `[N]`."""
        if isinstance(self.images, LazyImages):
            return Split(self.images.select(indices), self.targets[indices])
        return Split(self.images[indices], self.targets[indices])

    def with_views(self, views: Views, workers: int) -> "Split":
        """Return the same images for training: as the members' views, drawn in worker processes."""
        images = self.images
        if not isinstance(images, LazyImages):
            images = LazyImages(images, images.shape[1])
        return Split(replace(images, views=views, workers=workers), self.targets)

    def read(self, epoch_and_draws: tuple[int, Indices]) -> tuple[Pixels, npt.NDArray[np.int64], list[str]]:
        """Read a batch of an epoch.

        Args:
            epoch_and_draws: the epoch, and the batch's draws (`order.BatchOrder`).

        Returns:
            The images, their classes, and the names of replaced images with reasons.

        Raises:
            DataError: for an image that cannot be decoded and must not be replaced.
        """
        epoch, draws = epoch_and_draws
        repeats, indices = np.divmod(draws, max(1, len(self)))
        if isinstance(self.images, LazyImages):
            substitutes = self._of_same_class if self.images.skip_corrupt else None
            pixels, replaced = self.images.read(indices, epoch, repeats, substitutes)
            return pixels, self.targets[indices], replaced
        return self.images[indices], self.targets[indices], []

    def _of_same_class(self, index: int) -> Indices:
        """Return some other images of the same class, from the next one on."""
        alike = np.flatnonzero(self.targets == self.targets[index])
        return np.roll(alike, -1 - int(np.searchsorted(alike, index)))[:-1][:SUBSTITUTES]

    @property
    def replaced(self) -> list[str]:
        """Images that became unreadable and were replaced by others, each with its reason."""
        return list(dict.fromkeys(self.images.replaced)) if isinstance(self.images, LazyImages) else []

    def note(self, replaced: Sequence[str]) -> None:
        """Record images that were replaced, in `LazyImages.replaced`."""
        if isinstance(self.images, LazyImages):
            self.images.replaced.extend(replaced)


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        labels: names of the classes, by index.
        train: training split, if there is one.
        test: the images to score, if there are any: the test split; without one, the validation split or
            images that were held out of the training split.
        test_name: which of these they are: "test", "val" or "held-out".
        val: the images that choose the best epoch and calibrate; None if the test images have to.
        skipped: images that were left out because they cannot be decoded, each with its reason.
        notes: what to report about the data, in lines.
    """

    labels: list[str]
    train: Split | None
    test: Split | None
    test_name: str = "test"
    val: Split | None = None
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def space_evenly(count: int, limit: int | None) -> Indices:
    """Return at most `limit` of the indices 0 to `count` - 1, evenly spaced; None is no limit.

    Raises:
        ConfigError: if the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    chosen = count if limit is None else min(count, limit)
    return np.linspace(0, count - 1, chosen).round().astype(np.int64)
