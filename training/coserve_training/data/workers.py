"""A function applied to many items in worker processes, with the results in order."""

import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from coserve_training.errors import DataError

Item = TypeVar("Item", covariant=True)

START_SECONDS = (10.0, 40.0)
"""How long to wait for workers at each attempt to start them. Usually they start within milliseconds."""

DYING_SECONDS = 1.0
"""How long a worker may take to end after its connections have."""


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


class _Signal:
    """Signals that a worker has started."""

    def __init__(self, started: Any) -> None:
        self.started = started

    def __call__(self, _: int) -> None:
        self.started.release()


def _forget_workers(iterator: Any) -> None:
    """Keep torch from raising a worker's death wherever this process is; `__iter__` raises it."""
    _remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False


def _kill_workers(iterator: Any) -> None:
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join()
    iterator._shutdown_workers()


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
        self._function = _Function(function)
        self._items = items
        self._pin_memory = pin_memory
        self._loader = self._make_loader(min(workers, len(items)) if len(items) > 1 else 0)

    def _make_loader(self, workers: int) -> DataLoader[Any]:
        self._started = multiprocessing.get_context("fork").Semaphore(0) if workers else None
        return DataLoader(
            self._function,
            batch_size=None,
            sampler=self._items,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._pin_memory,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_Signal(self._started) if workers else None,
            # A generator of its own: drawing from the global one would change the next views.
            generator=torch.Generator().manual_seed(0),
        )

    def _start(self) -> Iterator[Any]:
        """Start an iteration, and the workers if they do not run yet.

        A worker hangs before its first instruction if another thread of this process held a lock when the
        worker was forked. Such workers are killed, and all of them are started again. If that fails too, this
        process does the work.
        """
        for seconds in START_SECONDS:
            fresh = self._loader._iterator is None and self._loader.num_workers > 0
            iterator = iter(self._loader)
            if fresh:
                _forget_workers(iterator)
            if not fresh or self._wait_for_workers(seconds):
                return iterator
            _kill_workers(iterator)
            self._loader = self._make_loader(self._loader.num_workers)
        self._loader = self._make_loader(0)
        return iter(self._loader)

    def _wait_for_workers(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        return all(
            self._started is not None and self._started.acquire(timeout=max(0.0, deadline - time.monotonic()))
            for _ in range(self._loader.num_workers)
        )

    def __iter__(self) -> Iterator[Any]:
        # This generator starts with the first `next`, after Lightning has set the epoch.
        done = 0
        try:
            for result in self._start():
                if isinstance(result, DataError):
                    raise result
                done += 1
                yield result
        except GeneratorExit:
            # Lightning asks for no more after an epoch's last batch; the workers stay for the next epoch.
            if done < len(self._loader):
                self.close()
            raise
        except DataError:
            self.close()
            raise
        except BaseException as error:
            lost = isinstance(error, Exception) and self._has_lost_a_worker()
            self.close()
            if not lost:
                raise
            raise DataError(
                "a process that reads images was killed, usually for want of memory or of shared memory "
                "(in a container, raise it with --shm-size)"
            ) from error

    def _has_lost_a_worker(self) -> bool:
        """Return whether a worker has ended. What the iteration raises then depends on what it waited for."""
        workers = getattr(self._loader._iterator, "_workers", [])
        sentinels = [worker.sentinel for worker in workers]
        return bool(multiprocessing.connection.wait(sentinels, DYING_SECONDS))

    def close(self) -> None:
        """End the workers; another iteration starts them anew.

        Otherwise they may wait for the garbage collector, under which each takes five seconds to end.
        """
        iterator: Any = self._loader._iterator
        if iterator is not None:
            self._loader._iterator = None
            iterator._shutdown_workers()


def index_batches(count: int, size: int) -> list[npt.NDArray[np.int64]]:
    """Split the indices 0 to `count` - 1 into batches of `size`; the last one may be smaller."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
