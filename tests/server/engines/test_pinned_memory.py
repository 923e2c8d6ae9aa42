"""Pinned host memory; where there is no GPU, with ordinary memory in its place."""

import asyncio
import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from cuda.bindings import runtime

from coserve_server.engines.embedded.choice import Choice
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.onnxruntime import gpus
from coserve_server.engines.onnxruntime.pinned_memory import BLOCKS, PinnedMemory
from coserve_server.errors import EngineError
from coserve_server.machine.cores import Cores
from coserve_server.pipeline.batching import Batcher
from tests.server.engines.embedded import with_engine
from tests.server.onnx_repository import write_repository

ONE = Cores(1, None)
OK = runtime.cudaError_t.cudaSuccess
HAS_GPU = runtime.cudaGetDeviceCount()[0] == OK
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
SHAPE = (8, 3, 8, 8)


class Host:
    """What was asked of CUDA, and its stand-in where there is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[range] = []
        self.devices: list[int] = []
        self._memory: list[Any] = []
        self._set_device, self._alloc = runtime.cudaSetDevice, runtime.cudaHostAlloc
        for name in ("cudaSetDevice", "cudaHostAlloc"):
            monkeypatch.setattr(runtime, name, getattr(self, name))

    def cudaSetDevice(self, gpu: int) -> Any:  # noqa: N802
        self.devices.append(gpu)
        return self._set_device(gpu) if HAS_GPU else (OK,)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        assert flags == runtime.cudaHostAllocPortable
        if HAS_GPU:
            error, address = self._alloc(size, flags)
        else:
            self._memory.append(ctypes.create_string_buffer(size))
            error, address = OK, ctypes.addressof(self._memory[-1])
        self.blocks.append(range(address, address + size))
        return error, address

    def holds(self, array: np.ndarray) -> bool:
        return any(array.ctypes.data in block for block in self.blocks)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    if not HAS_CUDA:
        monkeypatch.setattr(gpus, "CUDA", "CPUExecutionProvider")
        monkeypatch.setattr(gpus, "DEVICE", "cpu")
    return Host(monkeypatch)


def test_requests_are_put_together_there(tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(tmp_path, members=2)
    number = 0 if HAS_GPU else 1
    uploaded: list[bool] = []
    upload = ort.OrtValue.ortvalue_from_numpy
    sent = [np.random.default_rng(count).random((count, 3, 8, 8), np.float32) for count in (1, 2, 2)]

    def watched(array: np.ndarray, device: str, number: int) -> Any:
        uploaded.append(host.holds(array))
        return upload(array, device, number)

    async def ask(batcher: Batcher, engine: EmbeddedEngine, images: np.ndarray) -> np.ndarray:
        (share,) = await batcher.start(
            engine.ensembles["pair"], images, asyncio.get_running_loop().time() + 60
        )
        await share.run.finished
        outcome = share.run.outcomes()[1]
        assert outcome is not None
        assert outcome.logits is not None
        share.run.leave()
        return outcome.logits[share.rows]

    async def use(engine: EmbeddedEngine) -> None:
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", watched)
        batcher = Batcher(engine)
        session = ort.InferenceSession(
            tmp_path / "pair_member1/1/model.onnx", providers=["CPUExecutionProvider"]
        )
        for _ in range(2 * BLOCKS):
            answers = await asyncio.gather(*(ask(batcher, engine, images) for images in sent))
            for images, logits in zip(sent, answers, strict=True):
                np.testing.assert_allclose(logits, session.run(None, {"images": images})[0], atol=1e-3)
        assert uploaded == [True] * 2 * BLOCKS, "blocks are used again"
        uploaded.clear()
        await ask(batcher, engine, sent[0])
        assert uploaded == [False], "one request's images are not copied first"

    with_engine(tmp_path, use, Choice(gpus=(number,), pinned_host_memory=True), ONE)
    assert set(host.devices) == {number}, "nothing is taken of another GPU"


def test_a_block_is_lent_until_nothing_refers_to_it(host: Host) -> None:
    memory = PinnedMemory()
    assert memory.batch(SHAPE) is None
    memory.reserve(SHAPE, 0)
    memory.reserve((4, 3, 8, 8), 0)
    assert len(host.blocks) == BLOCKS, "the second needs no more"
    lent = [memory.batch(SHAPE) for _ in range(BLOCKS)]
    assert len({one.ctypes.data for one in lent if one is not None and host.holds(one)}) == BLOCKS
    assert memory.batch(SHAPE) is None
    part = lent.pop()
    assert part is not None
    part[:] = 7
    part = part[2:3]
    assert memory.batch(SHAPE) is None, "a slice is a reference"
    assert (part == 7).all()
    del part
    again = memory.batch((2, 3, 8, 8))
    assert again is not None
    assert (again.shape, again.dtype) == ((2, 3, 8, 8), np.float32)


def test_larger_batches_get_larger_blocks(host: Host) -> None:
    memory = PinnedMemory()
    memory.reserve((1, 3, 8, 8), 0)
    assert memory.batch(SHAPE) is None
    memory.reserve(SHAPE, 0)
    assert len(host.blocks) == 2 * BLOCKS
    lent = [memory.batch(SHAPE) for _ in range(BLOCKS)]
    assert all(one is not None and host.holds(one) for one in lent)
    assert memory.batch(SHAPE) is None
    assert memory.batch((1, 3, 8, 8)) is not None, "smaller ones stay"


def test_what_a_failure_leaves_is_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, alloc = PinnedMemory(), runtime.cudaHostAlloc

    def scarce(size: int, flags: int) -> Any:
        if len(host.blocks) % 3 == 2:
            host.blocks.append(range(0))
            return runtime.cudaError_t.cudaErrorMemoryAllocation, None
        return alloc(size, flags)

    monkeypatch.setattr(runtime, "cudaHostAlloc", scarce)
    with pytest.raises(EngineError, match="CUDA: out of memory"):
        memory.reserve(SHAPE, 0)
    lent = [memory.batch(SHAPE) for _ in range(3)]
    assert [one is None for one in lent] == [False, False, True]
    memory.reserve(SHAPE, 0)
    assert sum(len(block) > 0 for block in host.blocks) == BLOCKS


@pytest.mark.skipif(HAS_GPU or HAS_CUDA, reason="there is a GPU")
def test_without_a_gpu_there_is_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "CUDA", "CPUExecutionProvider")
    write_repository(tmp_path)

    async def use(_: EmbeddedEngine) -> None:
        pytest.fail("it started")

    with pytest.raises(
        EngineError, match=r"pair_member0 .* gets no pinned memory for its batches: CUDA: .*driver"
    ):
        with_engine(tmp_path, use, Choice(gpus=(0,), pinned_host_memory=True), ONE)


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
def test_a_gpu_copies_out_of_it() -> None:
    memory = PinnedMemory()
    memory.reserve(SHAPE, 0)
    images = memory.batch(SHAPE)
    assert images is not None
    error, attributes = runtime.cudaPointerGetAttributes(images.ctypes.data)
    assert error == OK
    assert attributes.type == runtime.cudaMemoryType.cudaMemoryTypeHost
