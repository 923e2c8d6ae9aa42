"""Batches of a split as tensors, gathered from memory or read ahead of time by worker processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coserve_training.data.lazy import Indices, LazyImages
from coserve_training.data.split import Split
from coserve_training.data.workers import ParallelMap, SizedIterable


class Batches:
    """Batches of images `[N, H, W, 3]` uint8, or views `[members, N, H, W, 3]`, and classes `[N]` int64.

    Args:
        split: the images and classes.
        order: draws of each batch (`order.BatchOrder`). Views are drawn for its `epoch`, if it has one. The
            epoch is read with the first batch, so that Lightning can set it until then.

    Raises:
        DataError: during iteration, for an image that cannot be decoded and must not be replaced.
    """

    batch_sampler = None
    """Lightning reads it from every loader with a `sampler`."""

    def __init__(self, split: Split, order: SizedIterable[Any]) -> None:
        self.split = split
        self.sampler = order
        workers = split.images.workers if isinstance(split.images, LazyImages) else 0
        pin_memory = torch.cuda.is_available()
        self._read = ParallelMap(split.read, _Requests(order), workers, pin_memory=pin_memory)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets, replaced in self._read:
            self.split.note(replaced)
            yield images, targets

    def close(self) -> None:
        """End the worker processes; the next iteration starts them anew."""
        self._read.close()


class _Requests:
    """The epoch and a batch's draws, for workers, which do not know the epoch."""

    def __init__(self, order: SizedIterable[Any]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        for indices in self.order:
            yield getattr(self.order, "epoch", 0), np.asarray(indices)


def to_pixels(images: Tensor) -> Tensor:
    """Convert `[N, H, W, 3]` uint8 to `[N, 3, H, W]` float32 in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255
