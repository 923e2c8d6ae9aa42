"""Reports of `coserve bench perf-analyzer`."""

from coserve_bench.perf_analyzer.results import ALONE, ENSEMBLE, TOGETHER, Measurement, Results
from coserve_bench.perf_analyzer.run import Latencies


def measurement(what: str, concurrency: int, p50_ms: float) -> Measurement:
    return Measurement(what, "cats", concurrency, Latencies(100, p50_ms, p50_ms, p50_ms), {})


def test_only_complete_measurements_are_compared() -> None:
    kinds = [(ALONE, 1), (ALONE, 2), (TOGETHER, 2), (TOGETHER, 3), (ENSEMBLE, 4)]
    first = [measurement(what, 1, ms) for what, ms in kinds]
    results = Results("cats", "2", 2, 1, 100, [*first, measurement(ALONE, 2, 1), measurement(TOGETHER, 2, 2)])
    (compared,) = results.comparisons()
    assert (compared.concurrency, compared.slowest_alone_ms, compared.in_turn_ms) == (1, 2, 3)
    assert (compared.together_ms, compared.ensemble_ms) == (3, 4)
    *_, comparison, last = results.table()
    assert comparison.startswith("concurrency 1, p50: ")
    assert last == "stopped early: these are the results so far"


def test_a_report_without_measurements() -> None:
    results = Results("cats", "2", 2, 1, 100)
    assert results.to_json()["comparisons"] == []
    assert len(list(results.table())) == 3
