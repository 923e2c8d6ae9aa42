"""`coserve evaluate` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_cli.scores import print_calibration
from coserve_training.runs.calibrate import calibrate
from coserve_training.runs.classes import ConfusionMatrix
from coserve_training.runs.evaluate import Outputs, score_members
from tests.training.untrained_run import write_run


def evaluate(*arguments: object) -> Result:
    """Run the command in this process: importing torch takes a process of its own seconds."""
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def run(image_folder: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", image_folder, split=4)


def test_scores_and_disagreement_are_printed_and_nothing_is_written(run: Path) -> None:
    before = sorted(run.iterdir())
    command = [Path(sys.executable).with_name("coserve"), "evaluate", str(run)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=200).stdout.splitlines()
    assert lines[0].split() == ["30", "images", "top-1", "top-5", "NLL", "ECE"]
    assert [line[:9].strip() for line in lines[1:6]] == ["ensemble", *(f"member {i}" for i in range(4))]
    assert lines[6].startswith("members disagree on ")
    assert sorted(run.iterdir()) == before


def test_calibrating_prints_a_row_per_number_of_members_and_records_what_it_prints(run: Path) -> None:
    printed = evaluate(run, "--calibrate").stdout
    recorded = json.loads((run / "last.calibration.json").read_text())
    rows = [line.split() for line in printed.splitlines() if "→" in line][:4]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    temperatures = recorded["calibration"]["temperatures"]
    assert {row[0]: float(row[1]) for row in rows} == pytest.approx(temperatures, abs=1e-4)
    assert "scored with what was fitted on the other half" in " ".join(printed.split())
    as_json = json.loads(evaluate(run, "--calibrate", "--json").stdout)
    assert as_json["calibration"] == recorded["calibration"]
    assert len(as_json["subsets"]) == 15
    by_class = {name: as_json.pop(name) for name in ("balanced_accuracy", "classes", "confusions")}
    for name in ("selective_accuracy", "other_images", "corrupted"):
        as_json.pop(name)
    assert sum(one["images"] for one in by_class["classes"]) == 30
    assert as_json == recorded["accuracy"] | {"calibration": recorded["calibration"]}


def test_prediction_sets_and_early_stopping_are_printed_as_recorded(run: Path) -> None:
    lines = evaluate(run, "--calibrate").stdout.splitlines()
    recorded = json.loads((run / "last.calibration.json").read_text())["calibration"]
    start = lines.index("Prediction sets") + 2
    rows = [line.split() for line in lines[start : start + 12]]
    assert [row[:2] for row in rows] == [[c, k] for c in ("90%", "95%", "99%") for k in "1234"]
    for coverage, size, *figures in rows:
        lac, raps = (
            recorded["prediction_sets"][name]["measured"][str(float(coverage[:-1]) / 100)][size]
            for name in ("lac", "raps")
        )
        assert figures == [
            f"{lac['coverage']:.2%}",
            f"{lac['size']:.2f}",
            f"{lac['empty']:.2%}",
            f"{raps['coverage']:.2%}",
            f"{raps['size']:.2f}",
        ]
    assert lines[start + 12 :][:6] == [
        "95% sets by LAC held every class when measured: they need 19 images to fit on,",
        "  and a half has 15",
        "99% sets by LAC hold every class: they need 99 images to fit on, not 30",
        "95% sets by RAPS held every class when measured: they need 19 images to fit on,",
        "  and a half has 12",
        "99% sets by RAPS hold every class: they need 99 images to fit on, not 24",
    ]
    start = lines.index("Early stopping") + 2
    assert [line.split() for line in lines[start : start + 3]] == [
        [
            f"{row['loss']:.1%}",
            f"{row['confidence']:.4f}",
            f"{row['members']:.2f}",
            f"{row['top1']:.2%}",
            f"{row['whole_top1']:.2%}",
        ]
        for row in recorded["early_stopping"]
    ]


def test_one_member_prints_no_early_stopping(capsys: pytest.CaptureFixture[str]) -> None:
    targets = torch.arange(40) % 4
    logits = torch.nn.functional.one_hot(targets).float().expand(1, 40, 4)
    print_calibration(score_members(logits, targets), *calibrate(logits, targets), as_json=False)
    printed = capsys.readouterr().out
    assert "Prediction sets" in printed
    assert "Early stopping" not in printed


def test_an_optimum_out_of_range_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    targets = torch.arange(40) % 4
    logits = 20 * torch.nn.functional.one_hot(targets).float().expand(2, 40, 4)
    print_calibration(score_members(logits, targets), *calibrate(logits, targets), as_json=False)
    told = [line for line in capsys.readouterr().out.splitlines() if "limit of the search" in line]
    assert [line.split(" is ")[0] for line in told] == ["0.1 for 1 member", "0.1 for 2 members"]


def test_calibration_that_makes_other_images_worse_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    targets = torch.arange(40) % 4
    sound = 2 * torch.nn.functional.one_hot(targets).float().expand(2, 40, 4)
    guesses = (targets + (torch.arange(40) < 20)) % 4
    half_wrong = 2 * torch.nn.functional.one_hot(guesses).float().expand(2, 40, 4)
    for fitted_on, worse in ((sound, True), (half_wrong, False)):
        fit_on = Outputs(fitted_on, targets, "val")
        calibration = calibrate(half_wrong, targets, fit_on=fit_on, split="test")
        print_calibration(score_members(half_wrong, targets), *calibration, as_json=False)
        assert ("likelihood of other images worse" in capsys.readouterr().out) == worse


def test_every_line_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of classes may be long, and temperatures may need an explanation."""
    targets = torch.arange(60) % 6
    logits = 20 * torch.nn.functional.one_hot((targets + (torch.arange(60) < 30)) % 6).float().expand(
        4, 60, 6
    )
    labels = [f"n0153028{index}_brambling_of_kind_{index}" for index in range(6)]
    matrix = ConfusionMatrix.count(logits.mean(0), targets, labels)
    print_calibration(
        score_members(logits, targets), *calibrate(logits, targets), as_json=False, matrix=matrix
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # No line breaks within an item.
    assert all(any(f"{label} 50.00% of 10" in line for line in lines) for label in labels[:5])


def test_too_few_images_are_one_line(run: Path, image_folder: Path, tmp_path: Path) -> None:
    for label in ("blue", "green", "red"):
        (tmp_path / "data/test" / label).mkdir(parents=True)
        (tmp_path / "data/test" / label / "0.png").symlink_to(image_folder / "test" / label / "000.png")
    result = evaluate(run, "--data", tmp_path / "data", "--calibrate")
    assert result.exit_code == 1
    assert result.stderr == ("error: calibrating needs at least two test images of every class; blue has 1\n")


def test_the_worst_classes_are_printed_and_the_matrix_is_written(run: Path, tmp_path: Path) -> None:
    lines = evaluate(run, "--confusion-matrix", tmp_path / "matrix.csv").stdout.splitlines()
    after = lines.index("scored on the test split") + 1
    starts = [line.split(" ")[0] for line in lines[after:] if line[:1].strip()]
    assert starts[:3] == ["mean", "lowest", "most"]
    assert (tmp_path / "matrix.csv").read_text().splitlines()[0] == "actual \\ predicted,blue,green,red"
    refused = evaluate(run, "--confusion-matrix", tmp_path / "matrix.jpg")
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"error: {tmp_path}/matrix.jpg: a confusion matrix is written as .csv or .png\n"
    )
