"""The order in which images are taken, which a resumed or a distributed run repeats."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.utils.data import Sampler


class BatchOrder(Sampler[torch.Tensor]):
    """Indices of this process's share of each batch, one of `processes`: shuffled by `seed`, or in order.

    When shuffled, the order depends on seed and epoch alone, so that a resumed run goes on alike, and the
    processes together see the very batches that one would see. A last batch that is not full is left out
    then.
    """

    def __init__(self, images: int, batch_size: int, seed: int | None, processes: int) -> None:
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0
        self.processes = processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size if self.seed is not None else -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        rank = dist.get_rank() % self.processes if dist.is_initialized() else 0
        order = torch.arange(self.images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.images, generator=generator)
        for index in range(len(self)):
            yield order[index * self.batch_size : (index + 1) * self.batch_size][rank :: self.processes]
