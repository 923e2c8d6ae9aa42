"""Ctrl-C and SIGTERM during `coserve bench speedup`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from coserve_bench.engine import LoadedNetworks
from coserve_bench.errors import BenchError
from coserve_bench.speedup import compare, measure
from coserve_bench.speedup.apart import run_apart
from coserve_bench.speedup.measure import Samples
from coserve_bench.speedup.report import Report
from coserve_cli.main import app
from tests.server.onnx_repository import HANGS, write_repository

STOPPED_IN_A_BATCH = """
import asyncio, signal
from coserve_bench.engine import LoadedNetworks
from coserve_cli.main import app

run = LoadedNetworks.run

async def interrupted(self, images):
    asyncio.get_running_loop().call_later(0.2, signal.raise_signal, signal.SIGINT)
    return await run(self, images)

LoadedNetworks.run = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
app()
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this file importable for the separate processes that run its functions."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal; SIGTERM is ignored unless the command handles it."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_IGN}
    before = {one: signal.signal(one, handler) for one, handler in handlers.items()}
    yield request.param
    for one, handler in before.items():
        signal.signal(one, handler)


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "speedup", *map(str, arguments)])


def interrupt_before(monkeypatch: pytest.MonkeyPatch, number: int, split: int, size: int, turn: int) -> None:
    """Raise the signal before a given turn of the members in turn on one core."""
    original = measure._turn
    turns = []

    async def stopped(networks: LoadedNetworks, images: np.ndarray, samples: Samples) -> None:
        plan = samples.plan
        if (plan.way, plan.division.split, samples.batch_size) == ("one_device", split, size):
            turns.append(plan)
            if len(turns) == turn:
                signal.raise_signal(number)
        await original(networks, images, samples)

    monkeypatch.setattr(measure, "_turn", stopped)


def test_prints_the_results_so_far(
    number: signal.Signals, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before(monkeypatch, number, split=2, size=2, turn=2)
    file = tmp_path / "out.json"
    plots = tmp_path / "plots"
    result = bench(
        *("--repository", repository, "--splits", "2", "--batch-sizes", "1,2,4", "--repeats", "1"),
        *("--output", file, "--plots", plots),
    )
    assert result.exit_code == 130, result.output
    assert json.loads(file.read_text())["complete"] is False
    report = Report.read(file)
    assert {row.split for row in report.comparable_rows("onnxruntime", "fp32", 1)} == {1, 2}
    assert {row.split for row in report.comparable_rows("onnxruntime", "fp32", 2)} == {1}
    assert report.batch_sizes == [1, 2]
    assert "batch 2" in result.stdout
    assert result.stdout.endswith("\ninterrupted: rows are missing, or have fewer repeats than others\n")
    assert {one.name for one in plots.iterdir()} == {"latency.png", "accuracy.png"}


def test_prints_nothing_before_the_first_measurement(
    number: signal.Signals, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before(monkeypatch, number, split=1, size=1, turn=1)
    result = bench("--repository", repository, "--splits", "2", "--output", tmp_path / "out.json")
    assert (result.exit_code, result.output) == (130, "")
    assert not (tmp_path / "out.json").exists()


def export_for_ever(told: Callable[[str, int, int], None]) -> None:
    told("exporting", 1, 2)
    time.sleep(600)


def test_exporting_ends_at_once_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: object, *_arguments: object, progress: object) -> None:
        run_apart(export_for_ever, progress=lambda *_: signal.raise_signal(number))

    # The first separate process makes a folder that `multiprocessing` keeps until the end.
    run_apart(blocked)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(compare, "run_apart", run)
    result = bench("--network", "wide_resnet10_1", "--splits", "2")
    assert (result.exit_code, result.output) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_members_are_not_reported_as_failed(tmp_path: Path) -> None:
    provenance = {"network": "tiny"}
    write_repository(tmp_path, "large", members=1, faults={0: HANGS}, provenance=provenance)
    command = ("bench", "speedup", "--repository", str(tmp_path), "--splits", "1")
    result = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_A_BATCH, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def blocked(_: object) -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_separate_processes_leave_signals_to_their_parent() -> None:
    assert run_apart(blocked) >= {signal.SIGINT, signal.SIGTERM}
    assert not blocked(None) & {signal.SIGINT, signal.SIGTERM}


def end(_: object) -> None:
    os._exit(9)


def test_a_killed_process_is_reported() -> None:
    with pytest.raises(BenchError, match="was killed, possibly because memory ran out"):
        run_apart(end)
