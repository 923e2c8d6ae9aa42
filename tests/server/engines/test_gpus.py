"""Members on GPUs; without them, ONNX Runtime's CPU provider and a fake driver stand in."""

import asyncio
import gc
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
import pytest

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime import (
    cuda_graphs,
    gpus,
)
from coserve_server.engines.onnxruntime.cuda_graphs import CaptureLock
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.engines.onnxruntime.replica import batch_sizes
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import EngineError
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun
from tests.server.engines.embedded import infer, with_engine
from tests.server.engines.fake_cuda import HAS_CUDA, FakeDriver
from tests.server.onnx_repository import FAILS, HANGS, write_repository

T = TypeVar("T")
ONE = Cores(1, None)
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def numbers(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """GPUs to use: one if GPUs are real, since there may be only one."""
    if HAS_CUDA:
        return (0,)
    request.getfixturevalue("driver")
    return (0, 1)


def images(count: int) -> Images:
    return np.random.default_rng(count).random((count, 3, 8, 8), np.float32)


def expected(repository: Path, index: int, batch: Images) -> Any:
    path = repository / f"pair_member{index}/1/model.onnx"
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": batch})[0]


@pytest.mark.parametrize("graphs", [False, True], ids=["kernels", "graphs"])
def test_members_give_the_same_logits_as_on_the_cpu(
    tmp_path: Path, numbers: tuple[int, ...], graphs: bool
) -> None:
    write_repository(tmp_path, members=3)
    # Other layouts, and read-only memory like a request's body.
    reversed_images = np.ascontiguousarray(images(2)[:, ::-1])[:, ::-1]
    reversed_images.flags.writeable = False
    batches = (images(3), images(1), reversed_images, images(8), images(5))

    async def use(engine: EmbeddedEngine) -> list[list[MemberRun]]:
        ensemble = engine.ensembles["pair"]
        assert engine.lanes(ensemble) == 3, "whatever the number of cores"
        assert engine.describe(ensemble).endswith(f"of GPU {', '.join(map(str, numbers))}, in fp32")
        return [await infer(engine, batch) for batch in batches]

    options = EngineOptions(gpus=numbers, cuda_graphs=graphs)
    for runs, batch in zip(with_engine(tmp_path, use, options, ONE), batches, strict=True):
        for index, run in enumerate(runs):
            assert run.failure is None
            np.testing.assert_allclose(run.logits, expected(tmp_path, index, batch), atol=1e-3)


@pytest.mark.parametrize(
    ("members", "gpu_numbers", "devices"),
    [
        (2, [0, 1], ["cuda:0", "cuda:1"]),
        (3, [4], ["cuda:4", "cuda:4", "cuda:4"]),
        (4, [0, 1], ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (2, [0, 1, 2, 3], ["cuda:0,2", "cuda:1,3"]),
        (2, [5, 6, 7], ["cuda:5,7,6", "cuda:6,5,7"]),
    ],
)
def test_every_gpu_has_equally_many_members(
    tmp_path: Path, members: int, gpu_numbers: list[int], devices: list[str]
) -> None:
    ensemble = read_repository(write_repository(tmp_path, members=members))["pair"]
    lanes = gpus.gpu_lanes(ensemble, gpu_numbers)
    assert set().union(*(lane.cores for lane in lanes)) == set(gpu_numbers), "ensembles take turns"
    assert [lane.device for lane in lanes] == devices
    assert len(set(Counter(gpu for lane in lanes for gpu in lane.gpus).values())) == 1
    for lane in lanes:
        lane.close()


def test_copies_share_a_batch(tmp_path: Path, driver: FakeDriver) -> None:
    write_repository(tmp_path, members=1)

    async def use(engine: EmbeddedEngine) -> list[MemberRun]:
        assert engine.describe(engine.ensembles["pair"]).endswith("of GPU 0, 1, in fp32")
        before = driver.copies["download"]
        runs = [(await infer(engine, images(count)))[0] for count in (5, 1)]
        assert driver.copies["download"] - before == 2 + 1, "one image needs one copy"
        return runs

    five, one = with_engine(tmp_path, use, EngineOptions(gpus=(0, 1)), ONE)
    assert five.device == "cuda:0,1"
    np.testing.assert_allclose(five.logits, expected(tmp_path, 0, images(5)), atol=1e-3)
    np.testing.assert_allclose(one.logits, expected(tmp_path, 0, images(1)), atol=1e-3)


def test_copies_of_two_members_on_one_gpu_take_different_parts(tmp_path: Path, driver: FakeDriver) -> None:
    write_repository(tmp_path, members=2)
    driver.gpus = 3

    async def use(engine: EmbeddedEngine) -> list[MemberRun]:
        return await infer(engine, images(7))

    runs = with_engine(tmp_path, use, EngineOptions(gpus=(0, 1, 2)), ONE)
    assert [run.device for run in runs] == ["cuda:0,2,1", "cuda:1,0,2"]
    for index, run in enumerate(runs):
        np.testing.assert_allclose(run.logits, expected(tmp_path, index, images(7)), atol=1e-3)


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, [1]), (2, [1, 2]), (64, [1, 2, 4, 8, 16, 32, 64]), (48, [1, 2, 4, 8, 16, 32, 48])],
)
def test_a_few_batch_sizes_run(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_every_size_is_captured_when_loading_and_batches_are_padded_to_it(
    tmp_path: Path, numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path, members=2)
    graphs: list[int] = []

    class Options(ort.RunOptions):
        def add_run_config_entry(self, key: str, value: str) -> None:
            assert key == "gpu_graph_id"
            graphs.append(int(value))
            super().add_run_config_entry(key, value)

    monkeypatch.setattr(ort, "RunOptions", Options)

    async def use(engine: EmbeddedEngine) -> None:
        # The check of the logits runs one and two images more.
        assert Counter(graphs) == {1: 4, 2: 4, 4: 2, 8: 2}
        assert graphs[:4] == [8, 4, 2, 1], "first what takes the most memory"
        graphs.clear()
        for count in (3, 8, 5, 1):
            await infer(engine, images(count))

    with_engine(tmp_path, use, EngineOptions(gpus=numbers, cuda_graphs=True), ONE)
    assert graphs == [4, 4, 8, 8, 8, 8, 1, 1]


def test_a_member_that_cannot_be_captured_is_named(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_repository(tmp_path)
    ensemble = read_repository(tmp_path)["pair"]
    unlike = replace(ensemble, labels=(*ensemble.labels, "one more"))
    fault = r"pair_member0 .* cannot be run in batches of up to 8 as CUDA graphs: .*dimens"
    with pytest.raises(EngineError, match=fault):
        OnnxRuntimeEngine(EngineOptions(gpus=numbers, cuda_graphs=True), ONE, {"pair": unlike})


def test_nothing_else_runs_while_a_graph_is_recorded() -> None:
    captures = CaptureLock()
    inside = Counter[str]()
    seen: list[Counter[str]] = []

    def use(how: Callable[[], AbstractContextManager[None]], kind: str) -> None:
        for _ in range(50):
            with how():
                inside[kind] += 1
                seen.append(inside.copy())
                time.sleep(0.0002)
                inside[kind] -= 1

    with ThreadPoolExecutor(6) as threads:
        uses = [threads.submit(use, captures.using, "using") for _ in range(4)]
        uses += [threads.submit(use, captures.capturing, "capturing") for _ in range(2)]
    for one in uses:
        one.result()
    assert all(one["capturing"] == 0 or one == {"capturing": 1, "using": 0} for one in seen)
    assert max(one["using"] for one in seen) > 1, "members run at once"


def test_a_run_that_does_not_end_stops_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "IDLE_S", 0.1)
    captures = CaptureLock()
    with (
        captures.using(),
        pytest.raises(TimeoutError, match=r"on the GPUs has not ended within 0\.1 s"),
        captures.capturing(),
    ):
        pytest.fail("the capture began during a run")
    with captures.using():
        pass
    with captures.capturing():
        pass


def test_members_on_one_gpu_share_an_upload(tmp_path: Path, driver: FakeDriver) -> None:
    write_repository(tmp_path, members=4)

    async def use(engine: EmbeddedEngine) -> None:
        driver.copies.clear()
        for count in (1, 2, 2):
            await infer(engine, images(count))

    with_engine(tmp_path, use, EngineOptions(gpus=(0, 1)), ONE)
    assert driver.copies == {"upload": 2 * 3, "copy": 4 * 3, "download": 4 * 3}


def test_a_fault_affects_only_its_own_member(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_repository(tmp_path, members=2, faults={1: FAILS})
    sound, failed = with_engine(
        tmp_path, lambda engine: infer(engine, images(1)), EngineOptions(gpus=numbers), ONE
    )
    assert sound.logits is not None
    assert failed.logits is None
    assert failed.failure


def test_an_abandoned_run_is_stopped(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_repository(tmp_path, members=2, faults={1: HANGS})

    async def use(engine: EmbeddedEngine) -> None:
        ensemble = engine.ensembles["pair"]
        sound, hanging = engine.start(ensemble, images(1))
        assert (await sound).logits is not None
        hanging.cancel()
        while len(engine.ready_members(ensemble)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    with_engine(tmp_path, use, EngineOptions(gpus=numbers), ONE)


def test_closing_frees_the_gpu(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> None:
        (loaded,) = engine._loaded.values()
        await infer(engine, images(1))
        replicas = [weakref.ref(one) for member in loaded.members for one in member.replicas]  # type: ignore[attr-defined]
        await engine.close()
        assert [one() for one in replicas] == [None, None]

    with_engine(tmp_path, use, EngineOptions(gpus=numbers, cuda_graphs=True), ONE)


def test_closing_frees_every_buffer(tmp_path: Path, driver: FakeDriver) -> None:
    write_repository(tmp_path)
    with_engine(tmp_path, lambda engine: infer(engine, images(1)), EngineOptions(gpus=(0, 1)), ONE)
    gc.collect()
    assert not driver.memory
