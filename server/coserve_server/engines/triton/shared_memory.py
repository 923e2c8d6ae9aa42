"""Images in memory that this process and Triton servers on the same machine both see.

Protocol: Triton's shared memory extensions,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
from tritonclient.grpc import service_pb2 as messages

from coserve_server.engines.base import Batch
from coserve_server.errors import SettingsError

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


class SharedMemory(ABC):
    """A region that holds the batches in progress; closed, it is gone.

    Attributes:
        kind: what the names of Triton's calls for it begin with.
        name: by which Triton knows it.
        size: bytes.
    """

    kind: ClassVar[str]

    def __init__(self, size: int) -> None:
        self.name, self.size = f"coserve-{uuid4().hex}", size
        self._places: list[Place] = []

    @abstractmethod
    def registration(self) -> Any:
        """The message that makes it known to a Triton server."""

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
        self._write(batch, offset)
        self._places.insert(index, place)
        return place

    def free(self, place: Place) -> None:
        """Let other batches use the place."""
        self._places.remove(place)

    @abstractmethod
    def _write(self, batch: Batch, offset: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Give the memory back."""


class SystemSharedMemory(SharedMemory):
    """A region of POSIX shared memory."""

    kind = "SystemSharedMemory"

    def __init__(self, size: int) -> None:
        """Take that many bytes.

        Raises:
            SettingsError: the system has not so many.
        """
        super().__init__(size)
        try:
            self._region = shared_memory.SharedMemory(self.name, create=True, size=size)
            try:
                # Now, rather than a signal at the first batch that does not fit.
                with Path("/dev/shm", self.name).open("r+b") as file:  # noqa: S108  # where they are
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                self.close()
                raise
        except OSError as error:
            fault = f"triton_shared_memory_mib: no {size >> 20} MiB of shared memory: {error.strerror}"
            raise SettingsError([fault]) from error

    def registration(self) -> Any:
        """By the name that the operating system has for it."""
        return messages.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.name}", offset=0, byte_size=self.size
        )

    def _write(self, batch: Batch, offset: int) -> None:
        np.ndarray(batch.shape, np.float32, self._region.buf, offset)[...] = batch

    def close(self) -> None:
        """Give the memory back."""
        self._region.close()
        self._region.unlink()
