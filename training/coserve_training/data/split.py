"""A labelled data set: labels and splits, whose images are in memory or decoded when they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_training.data.decode import Pixels
from coserve_training.data.lazy import Indices, LazyImages

Progress = Callable[[str, int, int], None]
"""Told what is being done, steps done and steps in all."""

Labelled = tuple[list[str], dict[str, tuple[Pixels, npt.NDArray[np.int64]]]]
"""Labels by class index, and per split images `[N, H, W, 3]` uint8 with their classes `[N]` int64."""

HOLD_OUT = 10
"""Where a data set has no test split, every tenth training image of a class is held out."""
SUBSTITUTES = 8
"""How many images are tried in place of one that became unreadable, before the run ends."""


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
        """Some of the images, by index or by a mask `[N]`."""
        if isinstance(self.images, LazyImages):
            return Split(self.images.select(indices), self.targets[indices])
        return Split(self.images[indices], self.targets[indices])

    def centred(self) -> "Split":
        """The same images as they are tested on: whole, where training crops at random."""
        if isinstance(self.images, LazyImages):
            return Split(self.images.centred(), self.targets)
        return self

    def hold_out(self) -> tuple["Split", "Split"]:
        """The images to train on, and every `HOLD_OUT`th of each class to test on, the same each time."""
        held_out = np.zeros(len(self), bool)
        for label in np.unique(self.targets):
            held_out[np.flatnonzero(self.targets == label)[HOLD_OUT - 1 :: HOLD_OUT]] = True
        return self.select(~held_out), self.select(held_out).centred()

    def read(self, epoch_and_indices: tuple[int, Indices]) -> tuple[Pixels, npt.NDArray[np.int64], list[str]]:
        """A batch of an epoch: images, classes, and which images had to be replaced by others, and why.

        Raises:
            DataError: for an image that cannot be decoded and may not be replaced.
        """
        epoch, indices = epoch_and_indices
        if isinstance(self.images, LazyImages):
            substitutes = self._of_same_class if self.images.skip_corrupt else None
            pixels, replaced = self.images.read(indices, epoch, substitutes)
            return pixels, self.targets[indices], replaced
        return self.images[indices], self.targets[indices], []

    def _of_same_class(self, index: int) -> Indices:
        """Some other images of its class, beginning with the one that follows."""
        alike = np.flatnonzero(self.targets == self.targets[index])
        return np.roll(alike, -1 - int(np.searchsorted(alike, index)))[:-1][:SUBSTITUTES]

    @property
    def replaced(self) -> list[str]:
        """Images that became unreadable while others took their place, each with its reason."""
        return list(dict.fromkeys(self.images.replaced)) if isinstance(self.images, LazyImages) else []

    def note(self, replaced: Sequence[str]) -> None:
        """Remember images that were replaced, for `LazyImages.replaced`."""
        if isinstance(self.images, LazyImages):
            self.images.replaced.extend(replaced)


@dataclass(frozen=True)
class Dataset:
    """Labels by class index, and the splits that were found."""

    labels: list[str]
    train: Split | None
    test: Split | None
    skipped: list[str] = field(default_factory=list)
    """Images that cannot be decoded and were left out, each with its reason."""
