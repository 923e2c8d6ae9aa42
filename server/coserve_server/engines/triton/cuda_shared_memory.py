"""Images in the memory of a GPU, which Triton servers on the same machine open too.

CUDA's side: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html, "cudaIpc"
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as messages

from coserve_server.engines.base import Batch
from coserve_server.engines.triton.shared_memory import SharedMemory
from coserve_server.errors import EngineError, SettingsError

try:
    from cuda.bindings import runtime
except ImportError as missing:
    fault = f"triton_shared_memory_gpu needs the extra cuda: pip install 'coserve[cuda]' ({missing})"
    raise SettingsError([fault]) from missing


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
            _call(runtime.cudaSetDevice, gpu)
            self._start = _call(runtime.cudaMalloc, size)
            handle = _call(runtime.cudaIpcGetMemHandle, self._start)
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
        _call(runtime.cudaMemcpy, self._start + offset, images.ctypes.data, images.nbytes, to_gpu)

    def close(self) -> None:
        """Give the memory back."""
        _call(runtime.cudaFree, self._start)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call CUDA, and give what it does.

    Raises:
        EngineError: it fails.
    """
    error, *result = function(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(error)
        raise EngineError(f"CUDA: {text.decode()}")
    return result[0] if result else None
