"""The embedded engine with real ONNX members; no test depends on how long anything takes."""

import asyncio
import os
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from coserve_server.engines.base import Images
from coserve_server.engines.embedded import lanes
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.members import STUCK
from coserve_server.machine.cores import Cores
from coserve_server.observability.record import Record
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.combine import combine
from tests.server.engines.embedded import infer, with_engine
from tests.server.onnx_repository import BUSY, FAILS, HANGS, write_repository


def images(count: int = 3) -> Images:
    return np.random.default_rng(9).random((count, 3, 8, 8), np.float32)


def run_directly(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.skipif(
    not hasattr(ort, "set_default_logger_callback"), reason="this ONNX Runtime only writes to standard error"
)
def test_warnings_of_onnxruntime_are_in_the_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_repository(tmp_path)
    path = tmp_path / "pair_member1/1/model.onnx"
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "nobody"))
    onnx.save(model, path)
    for _ in range(2):
        with_engine(tmp_path, lambda engine: infer(engine, images()))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"ONNX Runtime: {path}: Removing initializer 'nobody'")
    assert "nobody" not in capfd.readouterr().err, "and nowhere else"


def test_members_give_the_logits_of_onnxruntime(tmp_path: Path) -> None:
    write_repository(tmp_path)
    runs = with_engine(tmp_path, lambda engine: infer(engine, images()))
    for index, run in enumerate(runs):
        expected = run_directly(tmp_path / f"pair_member{index}/1/model.onnx", {"images": images()})
        np.testing.assert_allclose(run.logits, expected, atol=1e-4)
        assert run.start_ns < run.end_ns
        assert run.failure is None


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 2.0]])
def test_the_combination_is_the_repositorys_mean_model(tmp_path: Path, weights: list[float] | None) -> None:
    write_repository(tmp_path, members=3, weights=weights)
    runs = with_engine(tmp_path, lambda engine: infer(engine, images()))
    ours = combine(np.stack([run.logits for run in runs]), np.array(weights or [1.0] * 3)).logits
    inputs = {f"member{index}": run.logits for index, run in enumerate(runs)}
    np.testing.assert_allclose(ours, run_directly(tmp_path / "pair_mean/1/model.onnx", inputs), atol=1e-5)


def test_an_ensemble_of_one_member_may_use_all_cores(tmp_path: Path) -> None:
    write_repository(tmp_path, members=1)

    async def describe(engine: EmbeddedEngine) -> str:
        return engine.describe(engine.ensembles["pair"])

    assert with_engine(tmp_path, describe) == "1 at a time, 2 threads each on cpu (2 cores usable)"


def test_members_are_pinned_to_cores_of_their_own(tmp_path: Path) -> None:
    write_repository(tmp_path)
    allowed = sorted(os.sched_getaffinity(0))
    ids = (allowed[0], allowed[-1])
    runs = with_engine(tmp_path, lambda engine: infer(engine, images()), cores=Cores(2, ids))
    assert [run.device for run in runs] == [f"cpu:{ids[0]}", f"cpu:{ids[1]}"]
    assert sorted(os.sched_getaffinity(0)) == allowed, "the calling thread keeps its cores"


def test_more_members_than_cores_run_in_waves(tmp_path: Path) -> None:
    write_repository(tmp_path, members=5)
    runs = with_engine(tmp_path, lambda engine: infer(engine, images()))
    assert len(runs) == 5
    for run in runs:
        beside = [o for o in runs if o.start_ns <= run.start_ns < o.end_ns]
        assert len(beside) <= 2


def test_ensembles_never_run_at_once(tmp_path: Path) -> None:
    write_repository(tmp_path, "pair")
    write_repository(tmp_path, "single", members=1)

    async def both(engine: EmbeddedEngine) -> list[tuple[int, int]]:
        batcher = Batcher(engine)
        spans = list[tuple[int, int]]()

        async def ask(name: str) -> None:
            for _ in range(5):
                (share,) = await batcher.start(Record(), engine.ensembles[name], images(1), 2**62)
                runs = await asyncio.gather(*share.batch.members)
                spans.append((min(run.start_ns for run in runs), max(run.end_ns for run in runs)))

        await asyncio.gather(ask("pair"), ask("single"))
        return spans

    spans = sorted(with_engine(tmp_path, both))
    assert len(spans) == 10
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_failing_member_is_an_error_in_its_own_run(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={1: FAILS})
    sound, failed = with_engine(tmp_path, lambda engine: infer(engine, images()))
    assert sound.failure is None
    assert failed.logits is None
    assert "Gather" in failed.failure.reason


async def until_ready(engine: EmbeddedEngine) -> None:
    ensemble = engine.ensembles["pair"]
    for _ in range(5000):
        await asyncio.sleep(0.01)
        if len(engine.ready_members(ensemble)) == len(ensemble.members):
            return
    pytest.fail("the members are not ready again")


def test_a_cancelled_member_stops_and_is_back(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={0: HANGS})

    async def cancel(engine: EmbeddedEngine) -> list[MemberRun]:
        hanging, sound = engine.start(engine.ensembles["pair"], images())
        assert (await sound).failure is None
        hanging.cancel()
        await until_ready(engine)
        return await infer(engine, np.zeros_like(images()))

    assert all(run.failure is None for run in with_engine(tmp_path, cancel))


async def until_stuck(engine: EmbeddedEngine) -> None:
    """Abandon batches until one has begun and cannot be stopped: a busy machine may be slow to begin one."""
    ensemble = engine.ensembles["pair"]
    for _ in range(5000):
        runs = engine.start(ensemble, images())
        assert (await runs[1]).failure is None
        await asyncio.sleep(0.5)
        for run in runs:
            run.cancel()
        await asyncio.sleep(0.2)
        if len(engine.ready_members(ensemble)) < len(ensemble.members):
            return
    pytest.fail("no batch was begun")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PATIENCE_S", 0.1)


def test_stopped_runs_are_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that disconnects must not make another's request fail."""
    monkeypatch.setattr(lanes, "PATIENCE_S", 60)
    write_repository(tmp_path, members=3, faults={0: BUSY})

    async def use(engine: EmbeddedEngine) -> None:
        ensemble = engine.ensembles["pair"]
        for pause in (0.0, 0.1, 0.5):
            first, second, _ = engine.start(ensemble, images())
            assert (await second).failure is None
            await asyncio.sleep(pause)
            first.cancel()
            assert engine.ready_members(ensemble) == {one.name for one in ensemble.members}
            assert all(run.failure is None for run in await infer(engine, np.zeros_like(images())))

    with_engine(tmp_path, use)


@pytest.mark.usefixtures("impatient")
def test_a_member_that_cannot_be_stopped_is_left_out_until_it_is_free(tmp_path: Path) -> None:
    write_repository(tmp_path, members=3, faults={0: BUSY})
    black = np.zeros_like(images())

    async def use(engine: EmbeddedEngine) -> None:
        await until_stuck(engine)
        for _ in range(2):
            first, second, third = await infer(engine, black)
            assert first.failure == third.failure == STUCK, "they share a thread"
            assert second.failure is None
            assert engine.ready_members(engine.ensembles["pair"]) == {"pair_member1"}
        await until_ready(engine)
        assert all(run.failure is None for run in await infer(engine, black))

    with_engine(tmp_path, use)


@pytest.mark.usefixtures("impatient")
def test_members_queued_behind_one_that_cannot_be_stopped_are_left_out(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={0: BUSY})

    async def use(engine: EmbeddedEngine) -> None:
        ensemble = engine.ensembles["pair"]
        busy, _ = engine.start(ensemble, images())
        before, _ = engine.start(ensemble, np.zeros_like(images()))
        await asyncio.sleep(0.5)
        busy.cancel()
        after, _ = engine.start(ensemble, np.zeros_like(images()))
        for run in (before, after):
            assert (await asyncio.wait_for(run, 2)).failure == STUCK

    with_engine(tmp_path, use)


@pytest.mark.usefixtures("impatient")
def test_closing_does_not_wait_for_a_member_that_cannot_be_stopped(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={0: BUSY})

    async def leave(engine: EmbeddedEngine) -> bool:
        (loaded,) = engine._loaded.values()
        own = loaded.lanes
        await until_stuck(engine)
        await engine.close()
        return any(lane.stuck for lane in own)

    assert with_engine(tmp_path, leave), "the member was still running after the engine had closed"
    for thread in threading.enumerate():
        if thread.name.startswith("pair-"):
            thread.join(60)


@pytest.mark.parametrize("cancelled", [True, False])
def test_closing_stops_running_batches(tmp_path: Path, cancelled: bool) -> None:
    """Also if the event loop has not yet told the lane of a cancellation, or nobody cancelled."""
    write_repository(tmp_path, faults={0: HANGS})

    async def leave(engine: EmbeddedEngine) -> None:
        hanging, sound = engine.start(engine.ensembles["pair"], images())
        engine.start(engine.ensembles["pair"], images())
        assert (await sound).failure is None
        if cancelled:
            hanging.cancel()
        (loaded,) = engine._loaded.values()
        loaded.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("pair-")]

    with_engine(tmp_path, leave)


def test_no_member_is_ready_after_closing(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def ready(engine: EmbeddedEngine) -> tuple[frozenset[str], frozenset[str]]:
        ensemble = engine.ensembles["pair"]
        before = engine.ready_members(ensemble)
        await engine.close()
        return before, engine.ready_members(ensemble)

    assert with_engine(tmp_path, ready) == ({"pair_member0", "pair_member1"}, set())
