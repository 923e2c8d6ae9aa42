"""Timing members with PyTorch, on the CPU in place of a GPU."""

import time
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from coserve_bench.gpu import speed
from coserve_bench.gpu.devices import Cpu
from coserve_bench.gpu.speed import measure, summarise
from coserve_bench.gpu.training import time_steps
from coserve_bench.gpu.ways import (
    GRAPHS_IN_TURN,
    GRAPHS_ON_STREAMS,
    IN_TURN,
    ONE_GRAPH,
    STREAMS,
    build_members,
    make_ways,
    random_images,
)

NETWORK = "wide_resnet10_1"


def test_every_way_gives_the_mean_of_the_members() -> None:
    device = Cpu()
    members = build_members(NETWORK, 2, "fp32", device)
    images = random_images(3, "fp32", device)
    with torch.inference_mode():
        expected = torch.stack([network(images) for network in members.networks]).mean(dim=0)
    ways = make_ways(members, images, device)
    assert set(ways) == {IN_TURN, STREAMS, GRAPHS_IN_TURN, GRAPHS_ON_STREAMS, ONE_GRAPH}
    for call in ways.values():
        torch.testing.assert_close(call(), expected)
    undivided = build_members(NETWORK, 1, "fp32", device)
    assert set(make_ways(undivided, images, device)) == {IN_TURN, GRAPHS_IN_TURN}


def test_cases_are_measured_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=count().__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr(speed, "time", clock)
    cases = measure([NETWORK], ["fp32"], [1, 2], [1, 2], Cpu(), 1)
    rows = next(cases)
    assert {(row["split"], row["way"]) for row in rows} == {
        (1, IN_TURN),
        (1, GRAPHS_IN_TURN),
        *((2, way) for way in (IN_TURN, STREAMS, GRAPHS_IN_TURN, GRAPHS_ON_STREAMS, ONE_GRAPH)),
    }
    for row in rows:
        assert (row["network"], row["precision"], row["batch_size"]) == (NETWORK, "fp32", 1)
        assert row["ms"]["q1"] <= row["ms"]["median"] <= row["ms"]["q3"]
        assert row["difference"] < 1e-4
        # Two rounds of four runs: the deadline does not wait for more.
        assert row["runs"] == 8
    assert list(cases) == []


def test_members_at_once_are_compared_with_the_fastest_other_way() -> None:
    times = {(1, IN_TURN): 9, (1, GRAPHS_IN_TURN): 6, (2, IN_TURN): 8, (2, GRAPHS_IN_TURN): 5}
    times |= {(2, STREAMS): 4, (2, ONE_GRAPH): 2}
    case = {"network": "n", "precision": "fp32", "batch_size": 1}
    rows = [case | {"split": s, "way": way, "ms": {"median": ms}} for (s, way), ms in times.items()]
    assert summarise(rows) == [
        case | {"split": 2, "way": ONE_GRAPH, "over_in_turn": 2.5, "over_undivided": 3}
    ]
    (alone,) = summarise([row for row in rows if row["split"] == 2])
    assert "over_undivided" not in alone
    # Cut off before the ways at once were written.
    assert summarise([row for row in rows if row["way"] in (IN_TURN, GRAPHS_IN_TURN)]) == []


def test_steps_of_training_are_timed() -> None:
    row = time_steps(NETWORK, 2, 4, torch.device("cpu"), time.monotonic())
    assert row["steps"] == 1
    assert row["images_per_s"] == pytest.approx(4 / row["step_ms"] * 1e3)
