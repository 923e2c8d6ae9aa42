"""How members share cores that they outnumber."""

from typing import Any

import pytest

from coserve_bench.speedup import loading
from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.family import Division
from coserve_bench.speedup.ways import ALL_DEVICES, CONCURRENT, FUSED_PARALLEL, Plan
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.machine.cores import Cores
from coserve_server.machine.topology import PhysicalCore
from tests.server.fake_engine import ensemble

TWO = Cores.of_topology((PhysicalCore((0, 2)), PhysicalCore((1, 3))))


def test_hyper_threads_are_no_further_cores() -> None:
    assert [Devices(TWO).used_by(members) for members in (1, 2, 3, 8)] == [2] * 4


def test_each_way_has_the_cores_that_the_server_would_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def load(_: object, options: EngineOptions, cores: Cores) -> None:
        given.append((options.threads, cores))

    def load_branches(_: object, budget: ThreadBudget, cores: Cores) -> None:
        given.append((budget, cores))

    monkeypatch.setattr(loading, "load_ensemble", load)
    monkeypatch.setattr(loading, "_parallel_branches", load_branches)
    division = Division(4, "fp32", ensemble(4), ensemble(1), 1)
    for way in (CONCURRENT, ALL_DEVICES, FUSED_PARALLEL):
        loading.load(Plan(way, division, "onnxruntime", Devices(TWO)))
    concurrent, in_turn, parallel = given
    assert concurrent == (None, TWO)
    threads, cores = in_turn
    assert (cores.ids, cores.enough_for(4)) == (TWO.ids, cores)
    assert ThreadBudget.share(4, cores.enough_for(4).nodes, threads) == ThreadBudget(1, 2)
    assert parallel == (ThreadBudget(4, 1), TWO.enough_for(4))
