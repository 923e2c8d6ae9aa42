"""Batches of a split as tensors: gathered from memory, or decoded ahead in worker processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coserve_training.data.lazy import Indices, LazyImages
from coserve_training.data.split import Split
from coserve_training.data.workers import InWorkers, Items


class Batches:
    """Batches of images `[N, H, W, 3]` uint8, of random crops `[views, N, H, W, 3]`, and classes `[N]` int64.

    Args:
        split: what to go through.
        order: indices of each batch. Where it has an `epoch`, random crops are drawn for that; the epoch is
            asked for with the first batch, so Lightning may set it until then.

    Raises:
        DataError: while iterating, for an image that cannot be decoded and may not be replaced.
    """

    batch_sampler = None
    """Lightning asks for it where it finds a `sampler`."""

    def __init__(self, split: Split, order: Items[Any]) -> None:
        self.split, self.sampler = split, order
        workers = split.images.workers if isinstance(split.images, LazyImages) else 0
        self._read = InWorkers(split.read, _Requests(order), workers, pin_memory=torch.cuda.is_available())

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets, replaced in self._read:
            self.split.note(replaced)
            yield images, targets


class _Requests:
    """What workers are sent, who do not know the epoch: it, and the indices of a batch."""

    def __init__(self, order: Items[Any]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        for indices in self.order:
            yield getattr(self.order, "epoch", 0), np.asarray(indices)


def to_pixels(images: Tensor) -> Tensor:
    """`[N, H, W, 3]` uint8 to `[N, 3, H, W]` float32 in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255
