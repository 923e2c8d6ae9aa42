"""The timer of networks that are loaded in this process."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from coserve_bench.engine import LoadedNetworks, load_ensemble, random_images, time_runs
from coserve_bench.errors import BenchError
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores
from tests.server.onnx_repository import FAILS, write_repository


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the test moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("discarded", "at_least", "seconds", "yielded"),
    [(1, 2, 0, [2, 3]), (0, 1, 0, [1]), (0, 1, 6, [1, 2, 3]), (1, 2, 9, [2, 3, 4]), (1, 2, 11, [2, 3, 4, 5])],
)
def test_runs_are_timed_until_there_are_enough_and_the_time_is_over(
    clock: list[float], discarded: int, at_least: int, seconds: float, yielded: list[int]
) -> None:
    """Run n takes n seconds."""
    count = 0

    async def run() -> int:
        nonlocal count
        count += 1
        clock[0] += count
        return count

    async def collect() -> list[tuple[float, int]]:
        return [one async for one in time_runs(run, discarded=discarded, at_least=at_least, seconds=seconds)]

    assert asyncio.run(collect()) == [(1000 * number, number) for number in yielded]


def test_every_member_gives_its_logits(tmp_path: Path) -> None:
    (pair,) = read_repository(write_repository(tmp_path)).values()

    async def run(networks: LoadedNetworks) -> list[np.ndarray | None]:
        try:
            (runs,) = await networks.run(random_images(pair, 3))
        finally:
            await networks.close()
        return [run.logits for run in runs]

    first, second = asyncio.run(run(load_ensemble(pair, EngineOptions(), Cores(2, None))))
    assert first is not None
    assert second is not None
    assert first.shape == second.shape == (3, 4)
    assert not np.array_equal(first, second)
    assert np.array_equal(random_images(pair, 2), random_images(pair, 2))


def test_a_member_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    (pair,) = read_repository(write_repository(tmp_path, faults={1: FAILS})).values()

    async def run() -> None:
        networks = load_ensemble(pair, EngineOptions(), Cores(2, None))
        try:
            await networks.run(random_images(pair, 1))
        finally:
            await networks.close()

    with pytest.raises(BenchError, match=r"pair cannot be measured: .*Gather"):
        asyncio.run(run())
