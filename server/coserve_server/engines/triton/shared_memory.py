"""Images in memory that this process and Triton servers on the same machine both see.

Protocol: Triton's system shared memory extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

from dataclasses import dataclass
from multiprocessing import shared_memory
from uuid import uuid4

import numpy as np

from coserve_server.engines.base import Batch

ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Where a batch lies in the region of that name, in bytes."""

    region: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The next byte that another batch may use."""
        return self.offset + -(-self.size // ALIGNMENT) * ALIGNMENT


class SharedMemory:
    """A region of POSIX shared memory that holds the batches in progress; closed, it is gone.

    Attributes:
        name: by which Triton knows it.
        key: by which the operating system does.
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.name, self.size = f"coserve-{uuid4().hex}", size
        self.key = f"/{self.name}"
        self._region = shared_memory.SharedMemory(self.name, create=True, size=size)
        self._places: list[Place] = []

    def put(self, batch: Batch) -> Place | None:
        """Copy a batch into the first gap that holds it; None where there is none."""
        index, offset = 0, 0
        for place in self._places:
            if place.offset - offset >= batch.nbytes:
                break
            index, offset = index + 1, place.end
        if self.size - offset < batch.nbytes:
            return None
        place = Place(self.name, offset, batch.nbytes)
        self._places.insert(index, place)
        np.ndarray(batch.shape, np.float32, self._region.buf, offset)[...] = batch
        return place

    def free(self, place: Place) -> None:
        """Let other batches use the place."""
        self._places.remove(place)

    def close(self) -> None:
        """Give the memory back."""
        self._region.close()
        self._region.unlink()
