"""Page-locked memory of this machine, out of which GPUs copy by themselves.

From other memory CUDA copies to such memory of its own first:
https://docs.nvidia.com/cuda/cuda-c-best-practices-guide/#pinned-memory
"""

import ctypes
import math
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np

from coserve_server.engines.base import Batch
from coserve_server.engines.cuda_runtime import call, runtime

BLOCKS = 4
"""For the batch that ends, the one that began, the one that is put together, and the last uploaded."""

ITEM = np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class _Block:
    address: int
    size: int


class PinnedMemory:
    """Blocks that hold a batch each; one is free again when nothing refers to its batch any more.

    They stay as long as the process: CUDA may be told to free memory only while no graph is recorded, and
    the last reference to a batch goes at any time.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        # Blocks come back on whichever thread let go of a batch; only the event loop's takes them.
        self._free: deque[_Block] = deque()

    def reserve(self, shape: tuple[int, ...], gpu: int) -> None:
        """Have blocks for batches of this shape; called where CUDA may be used.

        Raises:
            EngineError: there is no such memory.
        """
        size = math.prod(shape) * ITEM
        # Or CUDA would take memory of the first GPU, whichever are used.
        call(runtime.cudaSetDevice, gpu)
        while sum(size <= one for one in self._sizes) < BLOCKS:
            # Portable: for all GPUs, not this one alone.
            address = call(runtime.cudaHostAlloc, size, runtime.cudaHostAllocPortable)
            self._sizes.append(size)
            self._free.append(_Block(address, size))

    def batch(self, shape: tuple[int, ...]) -> Batch | None:
        """An array of this shape, its values not set; None where no block that holds it is free."""
        size = math.prod(shape) * ITEM
        for _ in range(len(self._free)):
            block = self._free.popleft()
            if block.size >= size:
                break
            self._free.append(block)
        else:
            return None
        memory = (ctypes.c_char * size).from_address(block.address)
        weakref.finalize(memory, self._free.append, block).atexit = False
        return np.ndarray(shape, np.float32, memoryview(memory))
