"""Reports of `coserve bench http` on prepared runs."""

from array import array
from collections import Counter
from collections.abc import Iterator

import pytest

from coserve_bench.errors import BenchError
from coserve_bench.http.loads import ClosedLoop, Interval, Load, OpenLoop, Run
from coserve_bench.http.report import Report
from coserve_bench.http.results import LoadResults
from coserve_bench.http.table import table


def answers() -> Run:
    one = array("d", [2.0])
    return Run(latency=one, round_trip=one, late=array("d", [0.0]), completed=10, seconds=1, wall_s=1)


def failures(**errors: int) -> Run:
    kinds = Counter({kind.replace("_", " "): count for kind, count in errors.items()})
    return Run(errors=kinds, seconds=1, wall_s=1)


class Replay:
    """Returns prepared runs."""

    def __init__(self, *runs: Run) -> None:
        self._runs: Iterator[Run] = iter(runs)

    def run(self, load: Load, interval: Interval) -> Run:
        return next(self._runs)


@pytest.fixture
def report() -> Report:
    loads = [LoadResults(load) for load in (ClosedLoop(1), ClosedLoop(4), OpenLoop(20))]
    return Report("here", "cats", "1", 1, 1000, 2, 2, Interval(0, 1), loads)


def rows(report: Report) -> list[list[str]]:
    """Return the cells of the first table."""
    lines = list(table(report))[3:]
    return [line.split() for line in lines[: lines.index("")]]


def test_a_server_that_is_gone_after_a_round(report: Report) -> None:
    runs = [answers(), answers(), answers(), failures(cannot_connect=20)]
    with pytest.raises(BenchError, match=r"^the server stopped answering in round 2$"):
        report.measure(Replay(*runs), None)
    assert not report.complete
    assert report.loads[0].rates == [10], "time without a server does not count"
    assert [(row[0], row[2], row[-1]) for row in rows(report)] == [
        ("closed,", "10.0", "20"),
        ("closed,", "10.0", "0"),
        ("open,", "10.0", "0"),
    ]


def test_every_started_load_has_a_row(report: Report) -> None:
    with pytest.raises(BenchError, match=r"in round 1$"):
        report.measure(Replay(answers(), failures(cannot_connect=20)), None)
    assert [row[:2] for row in rows(report)] == [["closed,", "1"], ["closed,", "4"]]
    assert rows(report)[1] == ["closed,", "4", "0.0", "20"]


def test_a_server_that_breaks_connections_is_not_gone(report: Report) -> None:
    broken = failures(cannot_connect=20, connection_broken=1)
    report.measure(Replay(answers(), broken, answers(), answers(), broken, answers()), None)
    assert report.complete
    assert report.loads[1].rates == [0, 0]


def test_a_report_without_an_answer(report: Report) -> None:
    with pytest.raises(BenchError, match=r"^nothing was answered: 503 overloaded$"):
        report.measure(Replay(*(Run(errors=Counter({"503 overloaded": 9})) for _ in range(6))), None)
