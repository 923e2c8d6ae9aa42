"""GPUs through NVIDIA's driver: memory, and copies on streams of their own that let other Python threads run.

ONNX Runtime's own copies from Python keep the interpreter's lock until they are done; calls here release it.
The driver's API fits every CUDA version that ONNX Runtime was built for.

Reference: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

import weakref
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coserve_server.errors import SettingsError, first_line

try:
    from cuda.bindings import driver
except ImportError:
    driver = None


class CudaError(RuntimeError):
    """A call of the driver failed."""


def count_gpus() -> int:
    """Return how many GPUs the driver shows to this process.

    Raises:
        SettingsError: cuda-bindings or NVIDIA's driver is missing, or the driver does not work.
    """
    if driver is None:
        raise SettingsError(["gpus: cuda-bindings is not installed: pip install 'coserve[gpu]'"])
    try:
        _call(driver.cuInit, 0)
        return int(_call(driver.cuDeviceGetCount))
    except CudaError as error:
        raise SettingsError([f"gpus: NVIDIA's driver does not work: {error}"]) from error
    # cuda-bindings raises an error of its own, a RuntimeError, if it finds no libcuda.so.1.
    except RuntimeError as error:
        raise SettingsError([f"gpus: NVIDIA's driver is missing: {first_line(error)}"]) from error


class Gpu:
    """A GPU, used through its primary context, which ONNX Runtime uses too.

    Attributes:
        number: its number among those that the driver shows.
    """

    def __init__(self, number: int) -> None:
        """Open the GPU; `count_gpus` must have been called."""
        self.number = number
        context = _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, number))
        self._enter = partial(_call, driver.cuCtxSetCurrent, context)

    def free_bytes(self) -> int:
        """Return how much of its memory nobody has taken."""
        free, _ = self.call(driver.cuMemGetInfo)
        return int(free)

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call the driver with this GPU's context, and return its result."""
        self._enter()
        return _call(function, *arguments)


class Buffer:
    """Memory of a GPU, freed with this object.

    Attributes:
        pointer: its address on the GPU.
        size: its bytes.
    """

    def __init__(self, gpu: Gpu, size: int) -> None:
        """Allocate the memory.

        Raises:
            CudaError: the GPU has too little.
        """
        self.size = size
        self.pointer = int(gpu.call(driver.cuMemAlloc, size))
        # The end of the process frees all of it.
        weakref.finalize(self, gpu.call, driver.cuMemFree, self.pointer).atexit = False


class CopyStream:
    """A stream that only copies, beside the streams that compute."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._stream = gpu.call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        weakref.finalize(self, gpu.call, driver.cuStreamDestroy, self._stream).atexit = False

    def upload(self, target: Buffer, array: NDArray[np.float32]) -> None:
        """Start to copy an array, which must be contiguous, to the GPU."""
        self._gpu.call(
            driver.cuMemcpyHtoDAsync, target.pointer, array.ctypes.data, array.nbytes, self._stream
        )

    def copy(self, target: Buffer, source: Buffer, size: int) -> None:
        """Start to copy the first bytes of a buffer to another on the same GPU."""
        self._gpu.call(driver.cuMemcpyDtoDAsync, target.pointer, source.pointer, size, self._stream)

    def download(self, array: NDArray[np.float32], source: Buffer) -> None:
        """Start to copy from the GPU to an array, which must be contiguous."""
        self._gpu.call(
            driver.cuMemcpyDtoHAsync, array.ctypes.data, source.pointer, array.nbytes, self._stream
        )

    def wait(self) -> None:
        """Wait for the copies that were started."""
        self._gpu.call(driver.cuStreamSynchronize, self._stream)


def _call(function: Any, *arguments: Any) -> Any:
    """Call the driver and return its result: None, one value or a tuple.

    Raises:
        CudaError: the call failed.
    """
    status, *results = function(*arguments)
    if status.name != "CUDA_SUCCESS":
        _, text = driver.cuGetErrorString(status)
        reason = text.decode() if text else "unknown error"
        raise CudaError(f"{function.__name__}: {reason} ({status.name})")
    return results[0] if len(results) == 1 else tuple(results)
