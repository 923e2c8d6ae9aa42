"""`coserve bench speedup` on GPUs, in whose place stand ONNX Runtime's CPU provider and a fake driver."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coserve_bench.engine import ONNXRUNTIME
from coserve_bench.speedup import compare, peak
from coserve_bench.speedup.devices import find_devices
from coserve_bench.speedup.family import Division, read_family
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import (
    ALL_DEVICES,
    CONCURRENT,
    FUSED,
    GRAPHS,
    ONE_DEVICE,
    Plan,
    plans,
)
from coserve_cli.main import app
from coserve_server.engines.onnxruntime.replica import Replica
from tests.server.engines.fake_cuda import stand_in

BATCH = np.zeros((3, 3, 8, 8), np.float32)


@pytest.fixture(autouse=True)
def cpu_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


@pytest.mark.parametrize("numbers", [(0,), (0, 1)], ids=["streams", "several"])
@pytest.mark.parametrize("engine", [ONNXRUNTIME, GRAPHS])
def test_every_way_answers_the_whole_batch(
    numbers: tuple[int, ...],
    engine: str,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: set[threading.Thread] = set()
    run = Replica.run

    def noted(self: Replica, *arguments: Any) -> Any:
        threads.add(threading.current_thread())
        return run(self, *arguments)

    monkeypatch.setattr(Replica, "run", noted)
    family = read_family(repository, "tiny", [2], ["fp32"], tmp_path)
    devices = find_devices(numbers)

    async def images_of(way: str, division: Division) -> int:
        loaded = load(Plan(way, division, engine, devices))
        try:
            parts = await loaded.run(BATCH)
        finally:
            await loaded.close()
        return sum(len(run.logits) for runs in parts for run in runs if run.logits is not None)

    large, pair = family.divisions
    several = len(numbers) > 1
    for division, ways in (
        (large, [ONE_DEVICE, ALL_DEVICES]),
        (pair, [ONE_DEVICE, ALL_DEVICES, CONCURRENT, FUSED]),
    ):
        there = [plan.way for plan in plans(division, engine, devices)]
        assert there == [way for way in ways if several or way != ALL_DEVICES]
        for way in there:
            members = 1 if way == FUSED else division.split
            assert asyncio.run(images_of(way, division)) == 3 * members
    assert devices.used_by(2) == 2
    assert threads
    assert threading.main_thread() not in threads, "graphs belong to the threads that record them"


def test_graphs_are_compared_among_themselves(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peak.SIZES, "streams", 64)
    # Its separate processes would use the real CUDA provider.
    monkeypatch.setattr(compare, "measure_memory", lambda _plan, sizes: [None] * len(sizes))
    arguments = (
        "--splits",
        "2",
        "--gpus",
        "0",
        "--cuda-graphs",
        "--precisions",
        "fp32,tf32",
        "--repeats",
        "5",
        "--seconds",
        "0",
        "--json",
    )
    result = CliRunner().invoke(app, ["bench", "speedup", "--repository", str(repository), *arguments])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    ways = [(1, ONE_DEVICE), (2, ONE_DEVICE), (2, CONCURRENT), (2, FUSED)]
    expected = {
        (engine, precision, *way)
        for engine in (ONNXRUNTIME, GRAPHS)
        for precision in ("fp32", "tf32")
        for way in ways
    }
    assert {(row["engine"], row["precision"], row["split"], row["way"]) for row in rows} == expected
    for row in rows:
        if (row["split"], row["way"]) == (1, ONE_DEVICE):
            assert row["speedup"] == 1


def test_graphs_need_gpus(repository: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "speedup", "--repository", str(repository), "--cuda-graphs"])
    assert result.exit_code == 2
    assert "--cuda-graphs needs --gpus" in result.stderr
