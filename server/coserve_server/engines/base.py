"""The protocols between serving and an engine: what is loaded, how batches are scheduled, how they run."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.outcomes import MemberRun, Place

Images = NDArray[np.float32]
"""Preprocessed images, FP32 `[N, 3, H, W]`."""
Part = tuple[Images, slice | list[int]]
"""Images of one request, and the rows of them that are meant; a slice has a start and a stop."""


class Batch:
    """Images of several requests, which the first thread that needs them puts into one array.

    On the event loop, copying 64 images of 224 x 224 pixels would keep all requests waiting for 15 ms.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Take the requests' images, which nobody may change any more."""
        self._parts = parts
        self._size = sum(len(rows) if isinstance(rows, list) else rows.stop - rows.start for _, rows in parts)
        self._lock = threading.Lock()
        self._array: Images | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return self._size

    def array(self) -> Images:
        """Return the images, FP32 `[N, 3, H, W]`; always the same array."""
        with self._lock:
            if self._array is None:
                copies = [images[rows] for images, rows in self._parts]
                self._array = copies[0] if len(copies) == 1 else np.concatenate(copies)
                # The requests' own images are not needed any more.
                self._parts = ()
            return self._array


def gather(parts: Sequence[Part]) -> Images | Batch:
    """Return images of requests as one batch; those that lie in one piece are not copied."""
    images, rows = parts[0]
    return images[rows] if len(parts) == 1 and isinstance(rows, slice) else Batch(parts)


def as_array(images: Images | Batch) -> Images:
    """Return the images of a batch, FP32 `[N, 3, H, W]`."""
    return images.array() if isinstance(images, Batch) else images


class Inventory(Protocol):
    """The ensembles that an engine has loaded."""

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """The newest loaded version of each ensemble, by name."""

    def versions(self, name: str) -> Sequence[Ensemble]:
        """Return the loaded versions of an ensemble, newest last; empty if no ensemble has that name."""

    @property
    def load_errors(self) -> Mapping[str, str]:
        """Why models that the engine itself manages are not loaded, by name."""

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Return the names of the members that are loaded and not stuck with an abandoned batch."""

    def faults(self) -> list[str]:
        """Return why the engine does not serve everything that it should, in words fit for a user."""

    def why_missing(self, name: str | None) -> str | None:
        """Return why an ensemble that may exist is not served now; None if there is no such ensemble.

        Args:
            name: the ensemble's; None for any.
        """


class Scheduling(Protocol):
    """Tells the batcher when a batch may start."""

    def batches(self, ensemble: Ensemble) -> bool:
        """Return whether the backend batches on its own, so that requests should reach it immediately."""

    def places(self, ensemble: Ensemble) -> Sequence[Place]:
        """Return where batches of the ensemble may run: its copies, at least one, the best to use first.

        Batches of different ensembles run side by side only where their places share no cores.
        """

    def lanes(self, ensemble: Ensemble) -> int:
        """Return how many members of a copy of the ensemble run at once.

        The member with the index i belongs to the lane i modulo this number.
        """


class Running(Protocol):
    """Runs batches."""

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record], copy: int
    ) -> "list[asyncio.Future[MemberRun]]":
        """Hand a batch to every member at once.

        Args:
            ensemble: a loaded ensemble, or a single member of one.
            images: at most the ensemble's `max_batch_size`.
            records: the requests in the batch, for traces and logs.
            copy: index of the copy that runs it.

        Returns:
            one future per member, in the ensemble's order. A member's failure is a `failure` in its result,
            not an exception. Cancelling a future tells its member to stop; nobody waits until it has.
        """

    def describe(self, ensemble: Ensemble) -> str:
        """Return where and how the ensemble's members run, for the operator."""

    async def close(self) -> None:
        """Stop running batches and free the members."""


class BatchEngine(Scheduling, Running, Protocol):
    """The part of an engine that the batcher uses."""


class Engine(Inventory, BatchEngine, Protocol):
    """Executes batches; one instance serves all ensembles of a repository."""
