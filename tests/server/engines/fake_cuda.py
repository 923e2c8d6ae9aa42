# ruff: noqa: N802
"""A stand-in for NVIDIA's driver whose GPUs keep their memory on the host."""

import ctypes
from collections import Counter
from enum import Enum
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from coserve_server.engines.onnxruntime import cuda_driver, cuda_libraries, gpus, replica

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
"""Whether there may be real GPUs."""


class Status(Enum):
    """The statuses that calls return."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201


class FakeDriver:
    """Stands in for the module `cuda.bindings.driver`.

    Attributes:
        copies: bytes copied in each direction, by `upload`, `copy` and `download`, each call apart.
        memory: what is allocated, by address.
        gpus: their number.
        free: what each GPU reports as free, in bytes.
    """

    CUresult = Status
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self, gpus: int, free: int = 2**33) -> None:
        self.copies: Counter[str] = Counter()
        self.memory: dict[int, Any] = {}
        self.gpus = gpus
        self.free = free
        self._context: object = None

    def cuInit(self, flags: int) -> tuple[Status]:
        return (Status.CUDA_SUCCESS,)

    def cuDeviceGetCount(self) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, self.gpus

    def cuDeviceGet(self, number: int) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, number

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Status, object]:
        return Status.CUDA_SUCCESS, ("context", device)

    def cuCtxSetCurrent(self, context: object) -> tuple[Status]:
        self._context = context
        return (Status.CUDA_SUCCESS,)

    def cuMemGetInfo(self) -> tuple[Status, int, int]:
        if self._context is None:
            return Status.CUDA_ERROR_INVALID_CONTEXT, 0, 0
        return Status.CUDA_SUCCESS, self.free, self.free

    def cuMemAlloc(self, size: int) -> tuple[Status, int]:
        if size > self.free:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, 0
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.memory[ctypes.addressof(block)] = block
        return Status.CUDA_SUCCESS, ctypes.addressof(block)

    def cuMemFree(self, pointer: int) -> tuple[Status]:
        del self.memory[pointer]
        return (Status.CUDA_SUCCESS,)

    def cuStreamCreate(self, flags: int) -> tuple[Status, object]:
        return Status.CUDA_SUCCESS, object()

    def cuStreamDestroy(self, stream: object) -> tuple[Status]:
        return (Status.CUDA_SUCCESS,)

    def cuStreamSynchronize(self, stream: object) -> tuple[Status]:
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: object) -> tuple[Status]:
        return self._copied("upload", target, source, size)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: object) -> tuple[Status]:
        return self._copied("copy", target, source, size)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: object) -> tuple[Status]:
        return self._copied("download", target, source, size)

    def cuGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.CUDA_SUCCESS, status.name.lower().replace("_", " ").encode()

    def _copied(self, kind: str, target: int, source: int, size: int) -> tuple[Status]:
        self.copies[kind] += 1
        ctypes.memmove(target, source, size)
        return (Status.CUDA_SUCCESS,)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Put ONNX Runtime's CPU provider and a fake driver in the place of two GPUs; returns the driver."""
    if HAS_CUDA:
        pytest.skip("there may be real GPUs")
    fake = FakeDriver(2)
    monkeypatch.setattr(cuda_driver, "driver", fake)
    monkeypatch.setattr(cuda_libraries, "load", lambda _gpu: None)
    monkeypatch.setattr(gpus, "CUDA", "CPUExecutionProvider")
    monkeypatch.setattr(replica, "DEVICE", "cpu")
    bind = replica.Replica._bind
    # ONNX Runtime 1.23 knows one CPU device; it leaves buffers on another one as they are.
    monkeypatch.setattr(
        replica.Replica, "_bind", lambda self, member, size, _gpu: bind(self, member, size, 0)
    )
    return fake
