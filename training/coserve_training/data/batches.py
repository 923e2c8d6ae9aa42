"""Batches of a split as tensors: gathered from memory, or decoded ahead in worker processes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from coserve_training.data.lazy import Indices, LazyImages
from coserve_training.data.split import Split
from coserve_training.data.workers import InWorkers


class Order(Sampler[tuple[int, Indices]]):
    """Epoch and indices of each batch.

    They are shuffled by seed and epoch alone, so that a resumed run goes on as an unbroken one would have.
    """

    def __init__(self, images: int, batch_size: int, seed: int | None) -> None:
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Go on to `epoch` (from 0); Lightning calls this before it asks for an epoch's first batch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size if self.seed is not None else -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        order = np.arange(self.images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.images, generator=generator).numpy()
        for index in range(len(self)):
            yield self.epoch, order[index * self.batch_size : (index + 1) * self.batch_size]


class Batches:
    """Batches of images `[N, H, W, 3]` uint8, of random crops `[views, N, H, W, 3]`, and classes `[N]` int64.

    Args:
        split: what to go through.
        batch_size: images of a batch.
        seed: shuffles anew in every epoch and leaves out what fills no batch; None keeps all, in order.

    Raises:
        DataError: while iterating, for an image that cannot be decoded and may not be replaced.
    """

    def __init__(self, split: Split, batch_size: int, seed: int | None = None) -> None:
        self.split, self.sampler = split, Order(len(split), batch_size, seed)
        workers = split.images.workers if isinstance(split.images, LazyImages) else 0
        self._read = InWorkers(split.read, self.sampler, workers, pin_memory=torch.cuda.is_available())

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets, replaced in self._read:
            self.split.note(replaced)
            yield images, targets
