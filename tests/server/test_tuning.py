"""Choosing how to serve, and measuring it with real members; no assertion on how long anything takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from coserve_server.cores import Cores
from coserve_server.ensembles import Ensemble
from coserve_server.errors import SettingsError
from coserve_server.repository import read_repository
from coserve_server.tuning import (
    Candidate,
    Measured,
    best,
    candidates,
    comparable,
    installed_engines,
    measure,
)
from tests.server.onnx_repository import FAILS, write_repository


def repository(folder: Path, **top1: float | None) -> dict[str, Ensemble]:
    for name, accuracy in top1.items():
        known = {} if accuracy is None else {"accuracy": {"ensemble": {"top1": accuracy}}}
        write_repository(folder, name, max_batch_size=4, provenance=known)
    return read_repository(folder)


def test_only_what_is_accurate_enough_may_take_its_place(tmp_path: Path) -> None:
    found = repository(tmp_path, first=0.9, near=0.8975, far=0.896, better=0.91, unknown=None)
    kept, left_out = comparable([found[n] for n in ("first", "near", "far", "better", "unknown")], 0.3)
    assert [one.name for one in kept] == ["first", "near", "better"]
    assert left_out == {
        "far": "0.40 points less accurate than first",
        "unknown": "nobody measured the accuracy of unknown",
    }
    other = replace(found["near"], labels=("a", "b", "c", "d"))
    with pytest.raises(SettingsError, match="near has other classes or preprocessing than first"):
        comparable([found["first"], other], 0.3)


def test_every_way_to_serve_and_the_default_first(tmp_path: Path) -> None:
    (ensemble,) = repository(tmp_path, pair=None).values()
    ways = candidates([ensemble], ["onnxruntime", "openvino"], Cores(4, (0, 1, 2, 3)))
    told = [(way.engine, way.threads, way.pinned) for way in ways]
    assert told[:6] == [("onnxruntime", t, p) for t in (2, 1, 4) for p in (True, False)]
    assert len(told) == 12
    assert [(way.threads, way.pinned) for way in candidates([ensemble], ["onnxruntime"], Cores(1, None))] == [
        (1, False)
    ]


def test_the_best_by_either_goal_and_the_earlier_of_equals(tmp_path: Path) -> None:
    (ensemble,) = repository(tmp_path, pair=None).values()
    first, second = (Candidate("onnxruntime", ensemble, threads, True) for threads in (1, 2))
    measured = [Measured(first, 1, 2.0), Measured(first, 4, 6.1), Measured(first, 8, 12.0)]
    assert best([*measured, Measured(second, 1, 1.96)], "latency") is measured[0], "2 % are noise"
    assert best([*measured, Measured(second, 1, 1.8)], "latency").candidate is second
    assert best([*measured, Measured(second, 1, 1.8)], "throughput") is measured[1]
    assert measured[1].images_per_s == pytest.approx(4 / 0.0061)


def test_candidates_are_measured_in_turn(tmp_path: Path) -> None:
    (ensemble,) = repository(tmp_path, pair=None).values()
    assert installed_engines() == ["onnxruntime", "openvino"]
    ways = candidates([ensemble], installed_engines(), Cores(2, None))
    told: list[tuple[str, int, int]] = []
    found = measure(ways, Cores(2, None), (1, 4, 8), 2, 0.01, lambda *step: told.append(step))
    assert [(one.candidate, one.batch_size) for one in found] == [
        (way, size) for way in ways for size in (1, 4)
    ]
    assert all(one.batch_ms > 0 for one in found)
    assert told[-1] == ("measuring", 2 * len(ways), 2 * len(ways))


def test_a_candidate_that_fails_is_named(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={1: FAILS})
    ensemble = read_repository(tmp_path)["pair"]
    with pytest.raises(SettingsError, match=r"pair cannot be measured: .*Gather"):
        measure([Candidate("onnxruntime", ensemble, 1, False)], Cores(2, None), (1,), 1, 0.01)
