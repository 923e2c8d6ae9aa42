"""A function applied to many items in worker processes, with the results in order."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from coserve_training.errors import DataError

Item = TypeVar("Item", covariant=True)


class SizedIterable(Protocol[Item]):
    """Items with a known number, which can be iterated more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


class _Function(TorchDataset[Any]):
    """A data set of a function's results. Errors are results too: torch would rewrite raised ones."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.function(item)
        except DataError as error:
            return error


class ParallelMap:
    """Results of `function` for `items`, computed ahead of their use. Arrays become tensors.

    Args:
        function: the function; each worker gets a copy.
        items: its arguments, iterated anew by each iteration.
        workers: number of worker processes; 0 computes in this process, as does a single item.
        pin_memory: put tensors into page-locked memory, which a GPU can read directly.

    Raises:
        DataError: if `function` raised it, or a worker died.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        items: SizedIterable[Any],
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        workers = min(workers, len(items)) if len(items) > 1 else 0
        self._loader: DataLoader[Any] = DataLoader(
            _Function(function),
            batch_size=None,
            sampler=items,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # A generator of its own: drawing from the global one would change the next views.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Any]:
        # This generator starts with the first `next`, after Lightning has set the epoch.
        try:
            for result in self._loader:
                if isinstance(result, DataError):
                    raise result
                yield result
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a process that decodes images was killed: there is too little memory, or too little shared "
                "memory (in a container, raise it with --shm-size)"
            ) from error


def index_batches(count: int, size: int) -> list[npt.NDArray[np.int64]]:
    """Split the indices 0 to `count` - 1 into batches of `size`; the last one may be smaller."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
