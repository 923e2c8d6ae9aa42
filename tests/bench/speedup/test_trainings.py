"""What is said of networks whose accuracies are compared although they were trained differently."""

from dataclasses import replace
from pathlib import Path

import pytest

from coserve_bench.speedup import plots
from coserve_bench.speedup.family import read_family
from coserve_bench.speedup.report import Network, Report
from coserve_bench.speedup.table import table
from tests.server.onnx_repository import write_repository

STORED = Path(__file__).parents[3] / "benchmarks/results/speedup/wide_resnet16_4.json"
TRAINED: dict[int, tuple[str | None, int | None]] = {1: ("aa", 24), 2: ("bb", 24), 4: ("bb", 24)}
LINES = ["S=1: 24 epochs, recipe aa", "S=2, 4: 24 epochs, recipe bb"]


@pytest.fixture
def report() -> Report:
    """A stored report, which does not tell how networks were trained."""
    return Report.read(STORED)


def trained(report: Report, trainings: dict[int, tuple[str | None, int | None]]) -> Report:
    networks = []
    for one in report.networks:
        recipe, epochs = trainings.get(one.split, (None, None))
        networks.append(replace(one, recipe_hash=recipe, epochs=epochs))
    return replace(report, networks=tuple(networks))


def test_a_report_tells_how_networks_were_trained(tmp_path: Path) -> None:
    for members, training in ((1, {"recipe_hash": "aa", "epochs": 24}), (2, None)):
        known = {} if training is None else {"training": training}
        provenance = {"network": "tiny", **known}
        write_repository(tmp_path, f"s{members}", members=members, provenance=provenance)
    family = read_family(tmp_path, None, [2], ["fp32"], tmp_path)
    networks = [Network.from_division(one) for one in family.divisions]
    assert [(one.recipe_hash, one.epochs) for one in networks] == [("aa", 24), (None, None)]


def test_different_trainings_are_named_in_the_table_and_the_plot(report: Report) -> None:
    different = trained(report, TRAINED)
    assert f"trained differently: {'; '.join(LINES)}" in list(table(different))
    (axes,) = plots._accuracy(different).axes
    assert "\n".join(["trained differently:", *LINES]) in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("trainings", "lines"),
    [
        ({}, []),
        (dict.fromkeys((1, 2, 4), ("aa", 24)), []),
        # Not recorded, it may be the same.
        ({1: ("aa", 24), 4: ("aa", 24)}, []),
        ({1: (None, 80), 2: ("aa", 24)}, ["S=1: 80 epochs, recipe unknown", "S=2: 24 epochs, recipe aa"]),
    ],
)
def test_only_what_is_known_to_differ_is_named(
    report: Report, trainings: dict[int, tuple[str | None, int | None]], lines: list[str]
) -> None:
    told = trained(report, trainings)
    assert told.different_trainings == lines
    assert any("trained differently" in line for line in table(told)) == bool(lines)


def test_without_accuracies_there_is_nothing_to_compare(report: Report) -> None:
    different = trained(report, TRAINED)
    speeds = replace(different, networks=tuple(replace(one, top1=None) for one in different.networks))
    assert speeds.different_trainings == []
