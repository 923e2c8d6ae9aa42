"""CUDA shared memory; where there is no GPU, with memory of this process in place of the GPU's."""

import asyncio
import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime

from coserve_server.engines.triton.cuda_shared_memory import CudaSharedMemory
from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.errors import EngineError, SettingsError
from coserve_server.settings import load_settings
from tests.server.engines.engine_on_fake import IMAGES, infer, with_engine
from tests.server.engines.fake_triton import FakeTriton
from tests.server.onnx_repository import write_repository

MIB = 2**20
OK, INVALID = runtime.cudaError_t.cudaSuccess, runtime.cudaError_t.cudaErrorInvalidValue
HAS_GPU = runtime.cudaGetDeviceCount()[0] == OK


class HostRuntime:
    """The calls that are used, on memory of this process; one block at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = ctypes.create_string_buffer(0)
        self.handle = ctypes.create_string_buffer(b"a handle", runtime.CUDA_IPC_HANDLE_SIZE)
        self.freed: list[int] = []
        for name in ("cudaSetDevice", "cudaMalloc", "cudaIpcGetMemHandle", "cudaMemcpy", "cudaFree"):
            monkeypatch.setattr(runtime, name, getattr(self, name))

    def cudaSetDevice(self, gpu: int) -> tuple[Any, ...]:  # noqa: N802
        return (OK,) if gpu == 0 else (runtime.cudaError_t.cudaErrorInvalidDevice,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        self.memory = ctypes.create_string_buffer(size)
        return OK, ctypes.addressof(self.memory)

    def cudaIpcGetMemHandle(self, start: int) -> tuple[Any, ...]:  # noqa: N802
        assert start == ctypes.addressof(self.memory)
        return OK, SimpleNamespace(getPtr=lambda: ctypes.addressof(self.handle))

    def cudaMemcpy(self, target: int, source: int, size: int, kind: Any) -> tuple[Any, ...]:  # noqa: N802
        assert kind == runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        offset = target - ctypes.addressof(self.memory)
        if not 0 <= offset <= len(self.memory) - size:
            return (INVALID,)
        ctypes.memmove(target, source, size)
        return (OK,)

    def cudaFree(self, start: int) -> tuple[Any, ...]:  # noqa: N802
        self.freed.append(start)
        return (OK,)

    def images(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self.memory, np.float32, int(np.prod(shape)), offset).reshape(shape)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostRuntime:
    return HostRuntime(monkeypatch)


def test_images_go_through_the_gpu_s_memory(tmp_path: Path, host: HostRuntime) -> None:
    repository = write_repository(tmp_path)
    # Not as they lie in memory.
    flipped = np.ascontiguousarray(IMAGES[:, :, ::-1])[:, :, ::-1]
    used: list[FakeTriton] = []

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        ((region, handle),) = fakes[0].regions.items()
        assert handle == host.handle.raw
        await asyncio.gather(
            *engine.start(engine.ensembles["pair"], flipped), *engine.start(engine.ensembles["pair"], IMAGES)
        )
        for request, images in zip(fakes[0].requests, (flipped, flipped, IMAGES, IMAGES), strict=True):
            assert len(request.raw_input_contents) == 0
            parameters = request.inputs[0].parameters
            assert parameters["shared_memory_region"].string_param == region
            assert parameters["shared_memory_byte_size"].int64_param == images.nbytes
            offset = parameters["shared_memory_offset"].int64_param
            np.testing.assert_array_equal(host.images(offset, images.shape), images)
        large = np.zeros((1400, 3, 8, 8), np.float32)
        assert all(run.logits is not None for run in await infer(engine, large))
        assert len(fakes[0].requests[-1].raw_input_contents) == 1, "it does not fit"
        used.extend(fakes)

    with_engine(repository, use, triton_shared_memory_mib=1, triton_shared_memory_gpu=0)
    assert used[0].regions == {}, "Triton need not know it any more"
    assert host.freed == [ctypes.addressof(host.memory)]


def test_cuda_s_own_words_say_what_is_wrong(host: HostRuntime) -> None:
    with pytest.raises(SettingsError, match=r"triton_shared_memory_gpu: .* of GPU 3: CUDA: invalid device"):
        CudaSharedMemory(MIB, 3)
    memory = CudaSharedMemory(MIB, 0)
    memory.size *= 2
    with pytest.raises(EngineError, match="CUDA: invalid argument"):
        memory.put(np.zeros((1400, 3, 8, 8), np.float32))
    place = memory.put(np.zeros((1, 3, 8, 8), np.float32))
    assert place is not None
    assert place.offset == 0, "what failed takes no place"


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_there_is_no_start() -> None:
    settings = load_settings(
        engine="triton", triton_url="127.0.0.1:1", triton_shared_memory_mib=1, triton_shared_memory_gpu=0
    )
    with pytest.raises(SettingsError, match=r"no 1 MiB of GPU 0: CUDA: .*driver"):
        asyncio.run(TritonEngine.connect(settings))


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
def test_a_gpu_s_memory_holds_what_was_put_there() -> None:
    memory, images = CudaSharedMemory(MIB, 0), np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    try:
        place, other = memory.put(images), memory.put(images + 1)
        assert place is not None
        assert other is not None
        for where, expected in ((place, images), (other, images + 1)):
            found = np.empty_like(images)
            kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            source = memory._start + where.offset
            assert runtime.cudaMemcpy(found.ctypes.data, source, found.nbytes, kind) == (OK,)
            np.testing.assert_array_equal(found, expected)
    finally:
        memory.close()


def test_the_gpu_needs_a_size() -> None:
    with pytest.raises(SettingsError, match="triton_shared_memory_gpu: give triton_shared_memory_mib too"):
        load_settings(engine="triton", triton_url="localhost:1", triton_shared_memory_gpu=0)
