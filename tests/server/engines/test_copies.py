"""Copies of an ensemble on cores that one copy leaves free."""

import asyncio
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.embedded import engine as engine_module
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import PATIENCE_S
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.machine.cores import Cores
from coserve_server.machine.topology import PhysicalCore
from coserve_server.settings import load_settings
from tests.server.engines.embedded import infer, with_engine
from tests.server.onnx_repository import HANGS, write_repository

ONE_THREAD = EngineOptions(threads=1)
IMAGES = np.zeros((1, 3, 8, 8), np.float32)


def test_batches_run_side_by_side_in_copies(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={0: HANGS, 1: HANGS})

    async def use(engine: EmbeddedEngine) -> list[list[int]]:
        pair = engine.ensembles["pair"]
        (loaded,) = engine._loaded.values()
        lanes = [[member.lane for member in copy] for copy in loaded.copies]
        assert len({id(lane) for copy in lanes for lane in copy}) == 4, "copies share a lane"
        assert (len(engine.places(pair)), engine.lanes(pair)) == (2, 2)
        queued = []
        futures = []
        for _ in range(3):
            best = engine.places(pair)[0]
            futures += engine.start(pair, IMAGES + 1, copy=best.copy)
            queued.append([lane.runs for copy in lanes for lane in copy])
        futures += engine.start(pair.alone(pair.members[1]), IMAGES + 1, copy=1)
        queued.append([lane.runs for copy in lanes for lane in copy])
        for future in futures:
            future.cancel()
        return queued

    queued = with_engine(tmp_path, use, ONE_THREAD, Cores(4, None))
    assert queued == [[1, 1, 0, 0], [1, 1, 1, 1], [2, 2, 1, 1], [2, 2, 1, 2]]


def test_every_copy_answers_alike(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> None:
        pair = engine.ensembles["pair"]
        told = engine.describe(pair)
        assert told == "2 copies, 4 at a time, 1 thread each on cpu, cpu, cpu, cpu (5 cores usable)"
        both = await asyncio.gather(*engine.start(pair, IMAGES), *engine.start(pair, IMAGES, copy=1))
        assert [run.name for run in both] == ["pair_member0", "pair_member1"] * 2
        for first, second in zip(both[:2], both[2:], strict=True):
            assert first.logits is not None
            assert second.logits is not None
            np.testing.assert_array_equal(first.logits, second.logits)

    with_engine(tmp_path, use, ONE_THREAD, Cores(5, None))


def test_a_copy_with_a_stuck_lane_is_used_only_if_all_have_one(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> None:
        pair = engine.ensembles["pair"]
        (loaded,) = engine._loaded.values()
        for lane, copies in ((loaded.lanes[0], [1]), (loaded.lanes[3], [0, 1]), (loaded.lanes[1], [1])):
            lane.abandon(Future())
            lane._abandoned = dict.fromkeys(lane._abandoned, -float(PATIENCE_S))
            assert [place.copy for place in engine.places(pair)] == copies

    with_engine(tmp_path, use, ONE_THREAD, Cores(4, None))


def test_without_free_cores_there_is_one_copy(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> int:
        assert all(run.failure is None for run in await infer(engine, IMAGES))
        return len(engine.places(engine.ensembles["pair"]))

    assert with_engine(tmp_path, use, ONE_THREAD, Cores(3, None)) == 1
    assert with_engine(tmp_path, use, EngineOptions(), Cores(4, None)) == 1


def test_copies_with_several_threads_of_openvino_are_not_pinned(tmp_path: Path) -> None:
    """OpenVINO's threads form one pool."""
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> str:
        return engine.describe(engine.ensembles["pair"])

    options = EngineOptions("openvino", threads=2)
    assert "cpu:" not in with_engine(tmp_path, use, options, Cores(4, (0, 0, 0, 0)))


def test_members_run_at_once_on_one_core_with_two_hyper_threads(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> None:
        pair = engine.ensembles["pair"]
        assert (len(engine.places(pair)), engine.lanes(pair)) == (1, 2)
        (loaded,) = engine._loaded.values()
        # This machine may have the second one or not: a lane is pinned where the system allows it.
        assert len({id(member.lane) for member in loaded.copies[0]}) == 2

    with_engine(tmp_path, use, EngineOptions(), Cores.of_topology((PhysicalCore((0, 1)),)))


@pytest.mark.parametrize(
    ("mib", "processes", "copies"),
    [
        (float("inf"), 1, 4),
        (5 * 65, 1, 4),
        (5 * 64, 1, 3),
        (3 * 65, 1, 2),
        (0, 1, 1),
        (3 * 65, 2, 1),
        (6 * 65, 2, 2),
    ],
)
def test_there_are_as_many_copies_as_memory_has_room_for(
    mib: float, processes: int, copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two members count as 64 MiB and their files' size, and one copy more is loaded by a reload."""
    write_repository(tmp_path)
    monkeypatch.setattr(engine_module, "available_bytes", lambda: mib * 2**20)

    async def main() -> int:
        engine = OnnxRuntimeEngine(EngineOptions(threads=1, processes=processes), Cores(8, None), {})
        try:
            await Reloader(tmp_path, engine, Catalogue(engine, load_settings(repository=tmp_path))).start()
            return len(engine.places(engine.ensembles["pair"]))
        finally:
            await engine.close()

    assert asyncio.run(main()) == copies
