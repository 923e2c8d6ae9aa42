"""Images in memory shared with Triton servers on the same machine.

Protocol: Triton's system shared memory extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

import errno
import os
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from uuid import uuid4

import numpy as np
from tritonclient.grpc import service_pb2 as messages

from coserve_server.engines.base import Images
from coserve_server.errors import SettingsError
from coserve_server.files import describe

ALIGNMENT = 64
FOLDER = Path("/dev/shm")  # noqa: S108  # where regions live


@dataclass(frozen=True)
class Slot:
    """The bytes of a region that one batch occupies."""

    region: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte that another batch may use."""
        return self.offset + -(-self.size // ALIGNMENT) * ALIGNMENT


class SharedMemory:
    """A region of POSIX shared memory for the batches in progress; `close` removes it.

    Attributes:
        name: Triton's name for the region.
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        """Allocate `size` bytes.

        Raises:
            SettingsError: the system does not have that much shared memory.
        """
        self.name = f"coserve-{uuid4().hex}"
        self.size = size
        self._slots: list[Slot] = []
        try:
            # Python's own clean-up after a failed mapping prints a traceback.
            _check_space(size)
            self._region = shared_memory.SharedMemory(self.name, create=True, size=size)
            try:
                # Without this, the first batch that does not fit would be a SIGBUS.
                with (FOLDER / self.name).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                self.close()
                raise
        except OSError as error:
            fault = f"triton_shared_memory_mib: cannot allocate {size >> 20} MiB: {describe(error)}"
            raise SettingsError([fault]) from error

    def registration(self) -> messages.SystemSharedMemoryRegisterRequest:
        """Return the message that registers the region with a Triton server."""
        return messages.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.name}", offset=0, byte_size=self.size
        )

    def put(self, images: Images) -> Slot | None:
        """Copy a batch into the first gap that holds it; return None if none does."""
        index = 0
        offset = 0
        for slot in self._slots:
            if slot.offset - offset >= images.nbytes:
                break
            index += 1
            offset = slot.end
        if self.size - offset < images.nbytes:
            return None
        slot = Slot(self.name, offset, images.nbytes)
        np.ndarray(images.shape, np.float32, self._region.buf, offset)[...] = images
        self._slots.insert(index, slot)
        return slot

    def free(self, slot: Slot) -> None:
        """Let other batches use the slot."""
        self._slots.remove(slot)

    def close(self) -> None:
        """Return the memory to the system."""
        self._region.close()
        self._region.unlink()


def _check_space(size: int) -> None:
    """Raise OSError if less than `size` bytes of shared memory are free."""
    status = os.statvfs(FOLDER)
    if status.f_bavail * status.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(FOLDER))
