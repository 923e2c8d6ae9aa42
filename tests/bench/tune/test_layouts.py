"""Workers and threads: which are tried, and which are chosen on machines whose times a model gives."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from coserve_bench.engine import LoadedNetworks
from coserve_bench.tune import candidates, choose, measure
from coserve_bench.tune.candidates import Candidate, fitting, with_layouts
from coserve_bench.tune.choose import Report, Request
from coserve_bench.tune.table import table
from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores
from coserve_server.machine.topology import PhysicalCore
from tests.server.onnx_repository import write_repository

BOTH = ["onnxruntime", "openvino"]
SPEEDUP = {"linear": lambda threads: threads, "poor": lambda threads: threads**0.5}


def machine(*nodes: int) -> Cores:
    numbers = [node for node, size in enumerate(nodes) for _ in range(size)]
    return Cores.of_topology(tuple(PhysicalCore((cpu,), node) for cpu, node in enumerate(numbers)))


@pytest.fixture
def pair(tmp_path: Path) -> Ensemble:
    write_repository(tmp_path, max_batch_size=16)
    return read_repository(tmp_path)["pair"]


def layouts(ensemble: Ensemble, cores: Cores, goal: candidates.Goal = "throughput") -> list[tuple[int, int]]:
    ways = with_layouts([Candidate(ensemble, EngineOptions())], cores, goal)
    return [(one.workers, one.options.threads or 0) for one in ways if one.options.pinned or not cores.ids]


def test_the_default_layout_comes_first(pair: Ensemble) -> None:
    assert layouts(pair, Cores(2, None)) == [(1, 1), (1, 2)]
    assert layouts(pair, Cores(4, None)) == [(1, 2), (2, 1), (1, 1), (1, 4)]
    assert layouts(pair, machine(64)) == [
        (8, 4), (32, 1), (16, 2), (4, 8), (2, 16), (1, 32), (1, 1), (1, 64),
    ]  # fmt: skip
    assert layouts(pair, machine(32, 32))[-4:] == [(2, 16), (1, 32), (1, 1), (1, 64)]


def test_copies_in_a_worker_use_the_cores_that_one_leaves_free(pair: Ensemble) -> None:
    ways = with_layouts([Candidate(pair, EngineOptions())], machine(64), "throughput")
    copies = {(way.workers, way.options.threads): way.copies for way in ways}
    assert copies == {layout: 32 if layout == (1, 1) else 1 for layout in copies}


def test_members_that_outnumber_the_cores_share_hyper_threads_as_in_the_server(tmp_path: Path) -> None:
    write_repository(tmp_path, "triple", members=3)
    triple = read_repository(tmp_path)["triple"]
    two = Cores.of_topology((PhysicalCore((0, 2, 4, 6)), PhysicalCore((1, 3, 5, 7))))
    ways = with_layouts([Candidate(triple, EngineOptions())], two, "throughput")
    assert [(way.options.threads, way.options.pinned, way.copies) for way in ways] == [
        (2, True, 1), (2, False, 1), (1, True, 2), (1, False, 1), (8, True, 1),
    ]  # fmt: skip
    for way in ways:
        assert create_engine(way.options, two).planned_copies(triple) == way.copies


def test_for_latency_one_worker_has_all_cores(pair: Ensemble) -> None:
    assert layouts(pair, machine(64), "latency") == [(1, 32), (1, 1), (1, 64)]


def test_every_layout_is_tried_pinned_and_not_in_each_engine(pair: Ensemble) -> None:
    ways = with_layouts(
        [Candidate(pair, EngineOptions(engine)) for engine in BOTH], Cores(2, (0, 1)), "latency"
    )
    tried = [(way.options.engine, way.options.threads, way.options.pinned) for way in ways]
    assert tried == [(engine, t, p) for engine in BOTH for t in (1, 2) for p in (True, False)]
    alone = Candidate(pair, EngineOptions("openvino", precision="bf16"), 0.9)
    (way,) = with_layouts([alone], Cores(1, None), "throughput")
    assert (way.options, way.top1) == (EngineOptions("openvino", 1, False, "bf16"), 0.9)


def test_layouts_that_do_not_fit_into_memory_are_left_out_and_named(pair: Ensemble) -> None:
    ways = [Candidate(pair, EngineOptions(), workers=workers) for workers in (8, 1, 2)]
    one = loading_bytes(pair)
    kept, left_out = fitting(ways, 4 * one)
    assert [way.workers for way in kept] == [1, 2]
    assert left_out == {
        "pair in fp32 with onnxruntime, 8 x 1 copies": f"needs {8 * one / 2**30:.1f} GiB beside the others"
    }
    assert fitting(ways, 0)[0] == [ways[1]], "one worker is always tried"


@pytest.fixture
def simulate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: Ensemble
) -> Callable[[Cores, str, candidates.Goal], Report]:
    """Return a function that tunes for a machine on which a member's threads have this speed-up."""

    def simulate(cores: Cores, speedup: str, goal: candidates.Goal) -> Report:
        async def close() -> None:
            pass

        def load(ensemble: Ensemble, options: EngineOptions, slice_: Cores) -> LoadedNetworks:
            given.append(slice_)
            return LoadedNetworks(str(slice_.count), lambda images: [], close)

        async def time(
            networks: LoadedNetworks, way: Candidate, size: int, seconds: float
        ) -> Sequence[float]:
            threads = way.options.threads or 0
            turns = np.ceil(2 / min(2, int(networks.name) // threads))
            return [1 + size * turns / SPEEDUP[speedup](threads)]

        given: list[Cores] = []
        monkeypatch.setattr(choose, "usable_cores", lambda: cores)
        monkeypatch.setattr(candidates, "load_ensemble", load)
        monkeypatch.setattr(measure, "_time", time)
        report = choose.choose(Request(tmp_path, ["pair"], goal, 0.3, (), ["onnxruntime"], 2), None)
        used = {cpu for one in given for cpu in one.ids or ()}
        assert used == {*(cores.ids or ())}, "a worker was loaded onto other cores than its slice"
        return report

    return simulate


@pytest.mark.parametrize(
    ("cores", "speedup", "goal", "workers", "threads"),
    [
        (machine(2), "linear", "throughput", 1, 1),
        (machine(64), "poor", "throughput", 32, 1),
        (machine(64), "poor", "latency", 1, 32),
        (machine(32, 32), "linear", "latency", 1, 32),
        (Cores(16, None), "poor", "throughput", 8, 1),
    ],
)
def test_workers_and_threads_are_chosen_together(
    simulate: Callable[[Cores, str, candidates.Goal], Report],
    cores: Cores,
    speedup: str,
    goal: candidates.Goal,
    workers: int,
    threads: int,
) -> None:
    report = simulate(cores, speedup, goal)
    settings = report.settings
    assert settings is not None
    assert (settings["workers"], settings["member_threads"]) == (workers, threads)
    assert report.chosen is not None
    if goal == "throughput":
        fastest = max(one.images_per_s for one in report.measured)
        assert report.chosen.images_per_s >= fastest / 1.03
        rate = 1000 * workers * report.chosen.batch_size / report.chosen.batch_ms
        assert report.chosen.images_per_s == pytest.approx(rate)
    (shown,) = (line for line in table(report) if line.endswith("<- chosen"))
    assert f"{workers:9}  {threads:7}  " in shown
