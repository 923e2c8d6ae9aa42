"""Members on GPUs; without a CUDA provider, ONNX Runtime's CPU provider stands in for it."""

import asyncio
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
from coserve_server.engines.factory import create_engine
from coserve_server.engines.onnxruntime import cuda_graphs, gpus
from coserve_server.engines.onnxruntime.cuda_graphs import CaptureLock
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.engines.onnxruntime.sessions import create_session
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import EngineError, SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun
from coserve_server.settings import load_settings
from tests.server.engines.embedded import infer, with_engine
from tests.server.onnx_repository import FAILS, HANGS, write_repository

T = TypeVar("T")
ONE = Cores(1, None)
CUDA = "CUDAExecutionProvider"
HAS_CUDA = CUDA in ort.get_available_providers()


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """GPUs to use: one if GPUs are real, since there may be only one."""
    if HAS_CUDA:
        return (0,)
    monkeypatch.setattr(gpus, "CUDA", "CPUExecutionProvider")
    monkeypatch.setattr(gpus, "DEVICE", "cpu")
    return (0, 1)


def images(count: int) -> Images:
    return np.random.default_rng(count).random((count, 3, 8, 8), np.float32)


def test_members_give_the_same_logits_as_on_the_cpu(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_repository(tmp_path, members=3)

    async def use(engine: EmbeddedEngine) -> list[list[MemberRun]]:
        ensemble = engine.ensembles["pair"]
        assert engine.lanes(ensemble) == 3, "whatever the number of cores"
        assert engine.describe(ensemble).endswith(f"of GPU {', '.join(map(str, numbers))}")
        # Other sizes and layouts, and read-only memory like a request's body.
        reversed_images = np.ascontiguousarray(images(2)[:, ::-1])[:, ::-1]
        reversed_images.flags.writeable = False
        return [await infer(engine, batch) for batch in (images(3), images(1), reversed_images)]

    batches = with_engine(tmp_path, use, EngineOptions(gpus=numbers), ONE)
    for runs, batch in zip(batches, (images(3), images(1), images(2)), strict=True):
        for index, run in enumerate(runs):
            path = tmp_path / f"pair_member{index}/1/model.onnx"
            session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            np.testing.assert_allclose(run.logits, session.run(None, {"images": batch})[0], atol=1e-3)
            assert run.device == f"{gpus.DEVICE}:{numbers[index % len(numbers)]}"
            assert run.failure is None


def test_batches_of_some_sizes_run_as_graphs(
    tmp_path: Path, numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path, members=2)
    graphs: list[str] = []

    class Options(ort.RunOptions):
        def add_run_config_entry(self, key: str, value: str) -> None:
            assert key == "gpu_graph_id"
            graphs.append(value)
            super().add_run_config_entry(key, value)

    async def use(engine: EmbeddedEngine) -> list[list[MemberRun]]:
        monkeypatch.setattr(ort, "RunOptions", Options)
        reversed_images = np.ascontiguousarray(images(3)[:, ::-1])[:, ::-1]
        return [await infer(engine, batch) for batch in (images(1), reversed_images, images(2), images(1))]

    # Sizes beyond the ensemble's largest batch are not captured.
    batches = with_engine(tmp_path, use, EngineOptions(gpus=numbers, cuda_graphs=(1, 3, 100)), ONE)
    assert sorted(graphs) == sorted(["1", "3", "-1", "1"] * 2)
    for runs, batch in zip(batches, (images(1), images(3), images(2), images(1)), strict=True):
        for index, run in enumerate(runs):
            session = ort.InferenceSession(
                tmp_path / f"pair_member{index}/1/model.onnx", providers=["CPUExecutionProvider"]
            )
            np.testing.assert_allclose(run.logits, session.run(None, {"images": batch})[0], atol=1e-3)


def test_a_member_that_cannot_be_recorded_is_named(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_repository(tmp_path)
    ensemble = read_repository(tmp_path)["pair"]
    unlike = replace(ensemble, labels=(*ensemble.labels, "one more"))
    with pytest.raises(EngineError, match=r"pair_member0 .* cannot be captured as a CUDA graph: .*dimens"):
        OnnxRuntimeEngine(EngineOptions(gpus=numbers, cuda_graphs=(1,)), ONE, {"pair": unlike})


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


def test_members_on_one_gpu_share_an_upload(
    tmp_path: Path, numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path, members=4)
    uploads: Counter[int] = Counter()
    upload = ort.OrtValue.ortvalue_from_numpy

    def counted(array: np.ndarray, device: str, number: int) -> Any:
        uploads[number] += 1
        return upload(array, device, number)

    async def use(engine: EmbeddedEngine) -> None:
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", counted)
        for count in (1, 2, 2):
            await infer(engine, images(count))

    with_engine(tmp_path, use, EngineOptions(gpus=numbers), ONE)
    assert uploads == dict.fromkeys(numbers, 3)


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
        sessions = [weakref.ref(member.session) for member in loaded.members]
        await engine.close()
        assert [session() for session in sessions] == [None, None]

    with_engine(tmp_path, use, EngineOptions(gpus=numbers, cuda_graphs=(1,)), ONE)


@pytest.mark.skipif(HAS_CUDA, reason="there may be GPUs")
def test_without_cuda_nothing_runs_on_the_cpu_instead(tmp_path: Path) -> None:
    write_repository(tmp_path)
    settings = load_settings(repository=tmp_path, gpus="0, 1")
    assert settings.gpus == (0, 1)
    with pytest.raises(SettingsError, match=r"gpus: this ONNX Runtime has no CUDA.*onnxruntime-gpu\[cuda"):
        create_engine(EngineOptions.from_settings(settings), Cores(2, None))
    ensemble = read_repository(tmp_path)["pair"]
    with (
        pytest.raises(EngineError, match=r"pair_member0 .* cannot be run by CUDAExecutionProvider"),
        pytest.warns(UserWarning, match=CUDA),
    ):
        create_session(ensemble, ensemble.members[0], 1, gpus.provider(0))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"gpus": "0", "engine": "openvino"}, "gpus: only engine onnxruntime uses them"),
        ({"gpus": "0", "member_threads": 2}, "member_threads: members on gpus take no share"),
        ({"cuda_graphs": "1,8"}, "cuda_graphs: only members on gpus"),
        ({"gpus": "0", "cuda_graphs": "0"}, "cuda_graphs: Input should be greater than or equal to 1"),
        ({"gpus": "0", "cuda_graphs": "1,8,1"}, "cuda_graphs: .*each number may be named once"),
        ({"gpus": "0,0"}, "gpus: .*each number may be named once"),
        ({"gpus": "0,x"}, "gpus: Input should be a valid integer"),
        ({"gpus": "-1"}, "gpus: Input should be greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        load_settings(repository=tmp_path, **settings)
