"""Images in the memory of a GPU, which Triton servers on the same machine open too.

CUDA's side: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html, "cudaIpc"
"""

import ctypes
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as messages

from coserve_server.engines.base import Batch
from coserve_server.engines.cuda_runtime import call, runtime
from coserve_server.engines.triton.shared_memory import SharedMemory
from coserve_server.errors import EngineError, SettingsError


class CudaSharedMemory(SharedMemory):
    """A region of one GPU's memory."""

    kind = "CudaSharedMemory"

    def __init__(self, size: int, gpu: int) -> None:
        """Take memory of the GPU of that number.

        Raises:
            SettingsError: there is no such GPU, or it has not so much memory.
        """
        super().__init__(size)
        self._gpu = gpu
        try:
            call(runtime.cudaSetDevice, gpu)
            self._start = call(runtime.cudaMalloc, size)
            handle = call(runtime.cudaIpcGetMemHandle, self._start)
        except EngineError as error:
            raise SettingsError(
                [f"triton_shared_memory_gpu: no {size >> 20} MiB of GPU {gpu}: {error}"]
            ) from error
        self._handle = ctypes.string_at(handle.getPtr(), runtime.CUDA_IPC_HANDLE_SIZE)

    def registration(self) -> Any:
        """By the handle that CUDA lets other processes open."""
        return messages.CudaSharedMemoryRegisterRequest(
            name=self.name, raw_handle=self._handle, device_id=self._gpu, byte_size=self.size
        )

    def _write(self, batch: Batch, offset: int) -> None:
        images = np.ascontiguousarray(batch, np.float32)
        to_gpu = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(runtime.cudaMemcpy, self._start + offset, images.ctypes.data, images.nbytes, to_gpu)

    def close(self) -> None:
        """Give the memory back."""
        call(runtime.cudaFree, self._start)
