"""Batches of a split, in an order that a resumed or a distributed run repeats."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from coserve_training.config import TrainConfig
from coserve_training.data import Batches, Split


class _Order(Sampler[torch.Tensor]):
    """Indices of this process's share of each batch.

    When shuffled, the order depends on seed and epoch alone, so that a resumed run goes on alike, and the
    processes together see the very batches that one would see.
    """

    def __init__(self, images: int, batch_size: int, seed: int | None, processes: int) -> None:
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0
        self.processes = processes

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size if self.seed is not None else -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        rank = dist.get_rank() if dist.is_initialized() else 0
        order = torch.arange(self.images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.images, generator=generator)
        for index in range(len(self)):
            yield order[index * self.batch_size : (index + 1) * self.batch_size][rank :: self.processes]


def batches(split: Split, config: TrainConfig, seed: int | None, processes: int) -> Batches:
    """This process's share of every batch of a split: shuffled by `seed`, or in order without one."""
    return Batches(split, _Order(len(split), config.batch_size, seed, processes))
