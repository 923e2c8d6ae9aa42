"""Ensembles of the embedded engine side by side, on the cores of machines that tests do not have."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from coserve_server.engines.embedded import lanes
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores
from coserve_server.machine.topology import read_topology
from coserve_server.observability.record import Record
from coserve_server.outcomes import Share
from coserve_server.pipeline.batching import Batcher
from tests.server.engines.embedded import with_engine
from tests.server.machine.machines import Machine
from tests.server.onnx_repository import HANGS, add_version, write_repository
from tests.server.pipeline.held_engine import settle

ONE_THREAD = EngineOptions(threads=1)
BLACK = np.zeros((1, 3, 8, 8), np.float32)
ENDLESS = np.ones((2, 3, 8, 8), np.float32)
"""Larger than what waits, which then waits for an idle lane."""
NEVER = 2**62


def cores_of(machine: Machine, root: Path) -> Cores:
    machine.write(root)
    threads = [thread for core in range(machine.count) for thread in machine.threads(core)]
    return Cores.of_topology(read_topology(threads, root))


def places(engine: EmbeddedEngine, name: str) -> list[set[object]]:
    """Return the cores of each copy."""
    found = sorted(engine.places(engine.ensembles[name]), key=lambda place: place.copy)
    return [set(place.cores) for place in found]


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "counted"])
def test_an_ensemble_answers_while_another_runs_on_other_cores(
    tmp_path: Path, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "PATIENCE_S", 60)
    cores = cores_of(Machine(cores=5), tmp_path / "machine") if pinned else Cores(5, None)
    models = tmp_path / "models"
    write_repository(models, "pair", faults={0: HANGS, 1: HANGS})
    write_repository(models, "trio", members=3, faults={0: HANGS, 1: HANGS, 2: HANGS})

    async def use(engine: EmbeddedEngine) -> None:
        assert places(engine, "pair") == [{0, 1}, {2, 3}]
        assert places(engine, "trio") == [{4, 0, 1}], "the core that is not used, and one copy's"
        batcher = Batcher(engine)

        async def ask(name: str, images: np.ndarray) -> list[Share]:
            return await batcher.start(Record(), engine.ensembles[name], images, NEVER)

        async def answer(name: str) -> int:
            """Return the copy that answered."""
            (share,) = await ask(name, BLACK)
            await share.batch.finished
            assert all(run.failure is None for run in share.batch.outcomes())
            return share.batch.place.copy

        (trio,) = await ask("trio", ENDLESS)
        assert await answer("pair") == 1
        (pair,) = await ask("pair", ENDLESS)
        waiting = [asyncio.create_task(answer(name)) for name in ("pair", "trio")]
        await settle()
        assert len(batcher._lines) == 2
        assert (trio.batch.unfinished, pair.batch.unfinished) == (3, 2)
        trio.batch.release()
        assert await asyncio.gather(*waiting) == [0, 0]
        assert pair.batch.unfinished == 2
        pair.batch.release()

    with_engine(models, use, ONE_THREAD, cores)


def test_a_new_version_takes_the_cores_of_the_old_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_repository(tmp_path, name)

    async def use(engine: EmbeddedEngine) -> None:
        assert (places(engine, "one"), places(engine, "two")) == ([{0, 1}], [{2, 0}])
        add_version(tmp_path, "one", 2)
        assert await engine.replace("one", [read_repository(tmp_path)["one"]])
        assert engine.ensembles["one"].version == "2"
        assert places(engine, "one") == [{1, 0}]

    with_engine(tmp_path, use, ONE_THREAD, Cores(3, None))


def test_members_on_hyper_threads_leave_no_core_free(tmp_path: Path) -> None:
    machine = cores_of(Machine(cores=2, siblings="near"), tmp_path / "machine")
    models = tmp_path / "models"
    write_repository(models, "one", members=1)
    write_repository(models, "three", members=3)

    async def use(engine: EmbeddedEngine) -> None:
        assert places(engine, "one") == [{0}, {2}]
        assert places(engine, "three") == [{0, 2}]

    with_engine(models, use, ONE_THREAD, machine)
