"""The order of the images in each epoch, which resumed and distributed runs repeat."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.utils.data import Sampler


class BatchOrder(Sampler[torch.Tensor]):
    """The draws of this process's share of each batch.

    A draw is the index of an image plus, if the image was drawn before in the epoch, the number of images for
    each time. So each draw has a view of its own.

    A shuffled order depends only on the seed and the epoch. So a resumed run continues with the same batches,
    and several processes together see the batches that one process would see. An incomplete last batch is
    dropped.

    Args:
        images: number of images.
        batch_size: images per batch, over all processes.
        seed: seed of the shuffled order; None keeps the images in order, with the incomplete last batch.
        processes: number of processes that share each batch.
        classes: classes `[N]` to draw equally often, as many images as there are; None draws each image once.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int | None,
        processes: int,
        classes: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.processes = processes
        self.classes = classes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch's order. Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size if self.seed is not None else -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        rank = dist.get_rank() % self.processes if dist.is_initialized() else 0
        order = torch.arange(self.images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.images, generator=generator)
            if self.classes is not None:
                order = _balance(order, torch.from_numpy(self.classes), generator)
        for index in range(len(self)):
            yield order[index * self.batch_size : (index + 1) * self.batch_size][rank :: self.processes]


def _balance(order: torch.Tensor, classes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Repeat images of rare classes and leave out some of frequent ones; keep the number of images.

    The images of a class are repeated as often as each other, give or take one.
    """
    groups = [order[classes[order] == label] for label in sorted(set(classes.tolist()))]
    draws = -(-len(order) // len(groups))
    drawn = torch.cat([_repeat(group, draws, len(order)) for group in groups])
    return drawn[torch.randperm(len(drawn), generator=generator)][: len(order)]


def _repeat(group: torch.Tensor, draws: int, images: int) -> torch.Tensor:
    rounds = torch.arange(draws) // len(group)
    return group.repeat(int(rounds[-1]) + 1)[:draws] + rounds * images
