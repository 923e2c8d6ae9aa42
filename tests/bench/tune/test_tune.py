"""Choosing how to serve, measured with real members; nothing is asserted about durations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from coserve_bench.engine import LoadedNetworks
from coserve_bench.errors import BenchError
from coserve_bench.tune.accuracy import Evaluation, measure_top1
from coserve_bench.tune.candidates import Candidate, comparable, installed_engines, variants, with_layouts
from coserve_bench.tune.measure import Interrupted, Measured, best, measure
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import precisions
from coserve_server.engines.openvino.engine import OpenVinoEngine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun
from coserve_server.settings import Precision
from tests.server.onnx_repository import FAILS, write_repository

BOTH = ["onnxruntime", "openvino"]


def repository(folder: Path, **top1: float | None) -> dict[str, Ensemble]:
    for name, accuracy in top1.items():
        known = {} if accuracy is None else {"accuracy": {"ensemble": {"top1": accuracy}}}
        write_repository(folder, name, max_batch_size=4, provenance=known)
    return read_repository(folder)


def has(monkeypatch: pytest.MonkeyPatch, *found: Precision) -> None:
    """Make OpenVINO report that the processor supports these precisions."""
    monkeypatch.setattr(OpenVinoEngine, "precisions", staticmethod(lambda: list(found)))


def test_every_ensemble_engine_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(tmp_path, "quantised", provenance={"export": {"precision": "int8"}})
    found = repository(tmp_path, pair=0.9)
    ensembles = [found["pair"], found["quantised"]]
    has(monkeypatch, "fp32", "bf16")
    assert [(way.name, way.top1) for way in variants(ensembles, BOTH)] == [
        ("pair in fp32 with onnxruntime", 0.9),
        ("pair in fp32 with openvino", 0.9),
        ("pair in bf16 with openvino", None),
        ("quantised in int8 with onnxruntime", None),
        ("quantised in int8 with openvino", None),
    ]
    has(monkeypatch, "fp32")
    assert [way.precision for way in variants(ensembles, BOTH)] == ["fp32", "fp32", "int8", "int8"]
    other = replace(found["pair"], name="other", labels=("a", "b", "c", "d"))
    with pytest.raises(BenchError, match="other differs from pair in its classes or preprocessing"):
        variants([found["pair"], other], BOTH)
    with pytest.raises(BenchError, match="unknown engine 'tvm': choose from onnxruntime, openvino"):
        variants(ensembles, ["tvm"])


def test_only_accurate_candidates_are_comparable(tmp_path: Path) -> None:
    found = repository(tmp_path, first=0.9, near=0.8975, far=0.896, better=0.91, unknown=None)
    ways = variants([found[n] for n in ("first", "near", "far", "better", "unknown")], ["onnxruntime"])
    kept, left_out = comparable(ways, 0.3)
    assert [one.ensemble.name for one in kept] == ["first", "near", "better"]
    far, unknown = (f"{name} in fp32 with onnxruntime" for name in ("far", "unknown"))
    assert left_out == {
        far: "0.40 points less accurate than first in fp32 with onnxruntime",
        unknown: f"the accuracy of {unknown} is not known; give --evaluation-data",
    }


def test_bf16_needs_a_measured_accuracy_and_fp32_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, "fp32", "bf16")
    (pair,) = repository(tmp_path, pair=None).values()
    ways = variants([pair], BOTH)
    default, openvino, bf16 = ways
    kept, left_out = comparable(ways, 0.3)
    assert kept == [default, openvino]
    unknown = "the accuracy of pair in fp32 with onnxruntime is not known; give --evaluation-data"
    assert left_out == {bf16.name: unknown}
    measured = [replace(default, top1=0.9), replace(openvino, top1=0.9), replace(bf16, top1=0.898)]
    assert comparable(measured, 0.3) == (measured, {})
    assert comparable(measured, 0.1)[0] == measured[:2]
    has(monkeypatch, "fp32")
    with pytest.raises(SettingsError, match="this processor does not support bf16"):
        measure_top1([bf16], Cores(2, None), Evaluation([], np.zeros(0, np.int64)))


def test_accuracy_is_measured_through_the_engine(tmp_path: Path) -> None:
    write_repository(tmp_path, "pair", weights=[1.0, 3.0], max_batch_size=4)
    (pair,) = read_repository(tmp_path).values()
    images = np.random.default_rng(1).normal(size=(20, 3, 8, 8)).astype(np.float32)
    files = [tmp_path / f"pair_member{index}/1/model.onnx" for index in range(2)]
    logits = [ort.InferenceSession(file).run(None, {"images": images})[0] for file in files]
    mean = logits[0] / 4 + logits[1] * 3 / 4
    targets = mean.argmax(axis=1)
    # If two logits are nearly equal, bf16 may swap their classes.
    first = np.sort(mean)[:, -1]
    second = np.sort(mean)[:, -2]
    assert np.sum(first - second > 0.1) > 15
    near = first - second <= 0.1
    targets[:5] = (targets[:5] + 1) % 4
    told: list[tuple[str, int, int]] = []
    evaluation = Evaluation(iter([images[:16], images[16:]]), targets)
    found = measure_top1(variants([pair], BOTH), Cores(2, None), evaluation, lambda *step: told.append(step))
    assert [way.precision for way in found] == ["fp32", *precisions("openvino")]
    assert [way.top1 for way in found[:2]] == [0.75, 0.75]
    for way in found[2:]:
        assert way.top1 == pytest.approx(0.75, abs=near.mean())
    assert told[-2:] == [("measuring accuracy", 16, 20), ("measuring accuracy", 20, 20)]


def test_the_best_for_each_goal_is_the_first_of_equals(tmp_path: Path) -> None:
    (ensemble,) = repository(tmp_path, pair=None).values()
    first, second = (Candidate(ensemble, EngineOptions("onnxruntime", threads)) for threads in (1, 2))
    measured = [Measured(first, 1, 2.0), Measured(first, 4, 6.1), Measured(first, 8, 12.0)]
    assert best([*measured, Measured(second, 1, 1.96)], "latency") is measured[0], "2 % are noise"
    assert best([*measured, Measured(second, 1, 1.8)], "latency").candidate is second
    assert best([*measured, Measured(second, 1, 1.8)], "throughput") is measured[1]
    assert measured[1].images_per_s == pytest.approx(4 / 0.0061)


def test_candidates_are_measured_in_turn(tmp_path: Path) -> None:
    (ensemble,) = repository(tmp_path, pair=None).values()
    assert installed_engines() == ["onnxruntime", "openvino"]
    ways = with_layouts(variants([ensemble], installed_engines()), Cores(2, None), "throughput")
    told: list[tuple[str, int, int]] = []
    found = measure(ways, Cores(2, None), (1, 4, 8), 2, 0.01, lambda *step: told.append(step))
    assert [(one.candidate, one.batch_size) for one in found] == [
        (way, size) for way in ways for size in (1, 4)
    ]
    assert all(one.batch_ms > 0 for one in found)
    assert told[-1] == ("measuring", 2 * len(ways), 2 * len(ways))


def test_measurements_before_an_interruption_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ensemble,) = repository(tmp_path, pair=None).values()
    way = Candidate(ensemble, EngineOptions("onnxruntime", 1))
    run = LoadedNetworks.run
    limit = 2

    async def stopped(networks: LoadedNetworks, images: np.ndarray) -> list[list[MemberRun]]:
        if len(images) == limit:
            raise KeyboardInterrupt
        return await run(networks, images)

    monkeypatch.setattr(LoadedNetworks, "run", stopped)
    with pytest.raises(Interrupted) as interrupted:
        measure([way], Cores(2, None), (1, 2), 1, 0.01)
    ((kept,),) = interrupted.value.args
    assert (kept.candidate, kept.batch_size) == (way, 1)
    limit = 1
    with pytest.raises(KeyboardInterrupt) as early:
        measure([way], Cores(2, None), (1, 2), 1, 0.01)
    assert early.type is KeyboardInterrupt, "there is nothing to keep"


def test_a_candidate_that_fails_is_named(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={1: FAILS})
    ensemble = read_repository(tmp_path)["pair"]
    with pytest.raises(BenchError, match=r"pair cannot be measured: .*Gather"):
        measure([Candidate(ensemble, EngineOptions("onnxruntime", 1))], Cores(2, None), (1,), 1, 0.01)
