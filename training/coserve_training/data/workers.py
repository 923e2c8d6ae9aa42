"""Functions run over many items in worker processes, results in order."""

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


class Items(Protocol[Item]):
    """Items that can be counted, and gone through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


class _Function(TorchDataset[Any]):
    """A function as a data set of its results; errors too, as torch rewrites those that a worker raises."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.function(item)
        except DataError as error:
            return error


class InWorkers:
    """Results of `function` for `items`, computed ahead of their use; arrays become tensors.

    Args:
        function: what the workers call; it is copied to each of them.
        items: read anew whenever an iteration begins.
        workers: processes; 0 computes in this one, as is done for a single item.
        pin_memory: puts tensors where a GPU can fetch them from.

    Raises:
        DataError: what `function` raised; or a worker died.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        items: Items[Any],
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
            # Of its own: drawing from the global one would change the views that are drawn next.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Any]:
        # A generator asks for its first item when that is wanted, not before Lightning has told the epoch.
        try:
            for result in self._loader:
                if isinstance(result, DataError):
                    raise result
                yield result
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a process that decodes images was killed: too little memory, or too little shared memory "
                "(in a container, give it more with --shm-size)"
            ) from error


def in_order(count: int, size: int) -> list[npt.NDArray[np.int64]]:
    """The indices 0 to `count` - 1 in pieces of `size`, the last one of what remains."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
