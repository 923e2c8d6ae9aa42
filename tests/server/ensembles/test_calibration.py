"""`provenance.calibration`, as the repository has it and as serving reads it."""

from pathlib import Path
from typing import Any

import pytest

from coserve_server.ensembles.calibration import UNCALIBRATED
from coserve_server.ensembles.repository import read_contents, read_repository
from tests.server.onnx_repository import write_repository

SETS = {
    "lac": {
        "images": 5000,
        "thresholds": {"0.95": {"2": 0.8}, "0.9": {"1": 0.71, "2": 0.64}},
        "measured": {"0.95": {"2": {"coverage": 0.951, "size": 1.18, "empty": 0.001}}},
    },
    "raps": {"images": 4000, "penalty": 0.01, "free_classes": 2, "thresholds": {"0.99": {"1": 1.08}}},
}


def calibration(sets: object) -> dict[str, Any]:
    return {"calibration": {"temperatures": {"2": 0.9}, "prediction_sets": sets}}


def test_everything_is_read(tmp_path: Path) -> None:
    write_repository(tmp_path, provenance=calibration(SETS))
    ensemble = read_repository(tmp_path)["pair"]
    assert ensemble.calibration.temperature(2) == 0.9
    sets = ensemble.calibration.prediction_sets
    assert sets.lac is not None
    assert sets.raps is not None
    assert sets.lac.thresholds == {0.9: {1: 0.71, 2: 0.64}, 0.95: {2: 0.8}}
    assert (sets.lac.coverages(1), sets.lac.coverages(2), sets.lac.coverages(3)) == ([0.9], [0.9, 0.95], [])
    assert (sets.raps.penalty, sets.raps.free_classes) == (0.01, 2)
    assert sets.raps.thresholds == {0.99: {1: 1.08}}
    assert ensemble.provenance == calibration(SETS)


def test_a_member_alone_has_the_thresholds_for_one_member(tmp_path: Path) -> None:
    write_repository(tmp_path, provenance=calibration(SETS))
    ensemble = read_repository(tmp_path)["pair"]
    assert ensemble.alone(ensemble.members[0]).calibration == ensemble.calibration


@pytest.mark.parametrize("sets", [None, {}, {"aps": {"thresholds": {"0.9": {"1": 0.5}}}}])
def test_there_may_be_no_sets(sets: object, tmp_path: Path) -> None:
    write_repository(tmp_path, provenance=calibration(sets) if sets is not None else {"calibration": {}})
    ensemble = read_repository(tmp_path)["pair"]
    assert (ensemble.calibration.prediction_sets.lac, ensemble.calibration.prediction_sets.raps) == (
        None,
        None,
    )


BROKEN: dict[str, tuple[object, str]] = {
    "no object": ([0.9], ": Input should be a valid dictionary"),
    "no thresholds": ({"lac": {}}, ".lac.thresholds: Field required"),
    "a coverage in per cent": (
        {"lac": {"thresholds": {"95": {"2": 0.5}}}},
        ".lac.thresholds.95.[key]: Input should be less than 1",
    ),
    "a coverage that is not a number": (
        {"lac": {"thresholds": {"most": {"2": 0.5}}}},
        ".lac.thresholds.most.[key]: Input should be a valid number",
    ),
    "no members": (
        {"lac": {"thresholds": {"0.9": {"0": 0.5}}}},
        ".lac.thresholds.0.9.0.[key]: Input should be greater than 0",
    ),
    "a threshold that is not finite": (
        {"lac": {"thresholds": {"0.9": {"2": float("inf")}}}},
        ".lac.thresholds.0.9.2: Input should be",
    ),
    "a threshold below 0": (
        {"raps": {"penalty": 0, "free_classes": 1, "thresholds": {"0.9": {"2": -0.1}}}},
        ".raps.thresholds.0.9.2: Input should be greater than or equal to 0",
    ),
    "no penalty": ({"raps": {"free_classes": 1, "thresholds": {}}}, ".raps.penalty: Field required"),
    "no free class": (
        {"raps": {"penalty": 0.1, "free_classes": 0, "thresholds": {}}},
        ".raps.free_classes: Input should be greater than 0",
    ),
    "a penalty below 0": (
        {"raps": {"penalty": -1, "free_classes": 1, "thresholds": {}}},
        ".raps.penalty: Input should be greater than or equal to 0",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_damaged_sets_are_one_line_and_the_other_ensembles_are_read(fault: str, tmp_path: Path) -> None:
    sets, message = BROKEN[fault]
    write_repository(tmp_path, provenance=calibration(sets))
    write_repository(tmp_path, "other", provenance=calibration(SETS))
    contents = read_contents(tmp_path)
    assert list(contents.versions) == ["other"]
    (line,) = contents.errors.values()
    assert line.startswith(f"{tmp_path}/pair/config.pbtxt: parameter provenance.calibration.prediction_sets")
    assert f"prediction_sets{message}" in line
    assert "\n" not in line


def test_figures_of_the_mean_with_equal_weights_are_left_out_with_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accuracy = {"ensemble": {"top1": 0.9}, "members": [{"top1": 0.8}] * 2}
    subset = {"members": [0], "top1": 0.7}
    fitted = {"temperatures": {"1": 2.0}, "early_stopping": [{"loss": 0.0, "confidence": 0.8}]}
    provenance = {"accuracy": accuracy | {"subsets": [subset]}, "calibration": fitted}
    folder = write_repository(tmp_path / "weighted", weights=[1, 3], provenance=provenance)
    weighted = read_repository(folder)["pair"]
    read_repository(folder)
    assert weighted.provenance == {"accuracy": accuracy}
    assert weighted.calibration == UNCALIBRATED
    assert [weighted.accuracy.top1(used, 2) for used in ([0], [0, 1])] == [0.8, 0.9]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}/pair/config.pbtxt: the members' weights differ, so calibration and scores of subsets "
        "are left out: they describe the mean with equal weights"
    ]
    repository = write_repository(tmp_path / "equal", weights=[3, 3], provenance=provenance)
    equal = read_repository(repository)["pair"]
    assert equal.provenance == provenance
    assert equal.calibration.temperature(1) == 2
    assert equal.accuracy.top1([0], 2) == 0.7
