"""The part of `coserve evaluate` that tells what an ensemble knows about its own doubt."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_training.doubt.corruptions import CORRUPTIONS
from coserve_training.doubt.measures import MEASURES
from tests.training.untrained_run import write_run


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def run(image_folder: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", image_folder)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for level in range(4):
        Image.new("RGB", (50, 40), (level * 80,) * 3).save(folder / f"{level}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def rows_after(output: str, heading: str) -> dict[str, list[str]]:
    """Return the cells of each row of a table, until the next empty line."""
    table = output.split(heading)[1].split("\n\n")[0]
    return {line[:18].strip(): line[18:].split() for line in table.splitlines()}


def test_tables_show_what_json_has(run: Path, photographs: Path) -> None:
    options = ("--ood", photographs, "--corrupt", "--limit", 3)
    shown = evaluate(run, *options)
    content = json.loads(evaluate(run, *options, "--json").stdout)
    tables = shown.stdout.split("least doubt are answered")[1].splitlines()
    assert max(len(line) for line in tables if str(photographs) not in line) <= 80
    names = [name.replace("_", " ") for name in MEASURES]

    selective = rows_after(shown.stdout, "least doubt are answered")
    assert list(selective)[-6:] == names
    confidence = content["selective_accuracy"]["confidence"]
    assert selective["confidence"][:5] == [f"{value:.2%}" for value in confidence["accuracies"].values()]
    assert float(selective["energy"][5]) == round(content["selective_accuracy"]["energy"]["aurc"], 4)

    others = rows_after(shown.stdout, "2 images, told from the test images")
    found = content["other_images"][0]
    assert found["images"] == 2
    assert found["skipped"] == [f"{photographs}/broken.jpg (not an image in a known format)"]
    entropy = found["detection"]["entropy"]
    assert others["entropy"] == [
        f"{entropy[who][score]:.2%}" for who in ("ensemble", "member") for score in ("auroc", "fpr95")
    ]
    assert len(others["disagreement"]) == 2
    assert f"{photographs}: 3 of 5 images are used" in shown.stderr
    assert "1 images cannot be decoded and are left out" in shown.stderr

    corrupted = rows_after(shown.stdout, "\n3 images")
    assert [*corrupted][1:18] == [
        "as they are",
        *(name.replace("_", " ") + " (drawn)" * (name == "frost") for name in CORRUPTIONS),
        "mean of corrupted",
    ]
    mean = content["corrupted"]["mean"]
    assert corrupted["mean of corrupted"] == [
        f"{mean['ensemble']['top1']:.2%}", f"{mean['member']['top1']:.2%}",
        f"{mean['ensemble']['nll']:.4f}", f"{mean['member']['nll']:.4f}",
        f"{mean['ensemble']['ece']:.4f}", f"{mean['member']['ece']:.4f}",
        f"{mean['disagreement']:.2%}",
    ]  # fmt: skip


def test_without_options_there_is_selective_accuracy_alone(run: Path) -> None:
    content = json.loads(evaluate(run, "--json").stdout)
    assert set(content["selective_accuracy"]) == set(MEASURES)
    assert content["other_images"] == []
    assert content["corrupted"] is None


def test_what_cannot_be_used_is_told_before_anything_is_recorded(run: Path, tmp_path: Path) -> None:
    result = evaluate(run, "--calibrate", "--ood", tmp_path / "absent")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}/absent: no such file or folder")
    assert not (run / "last.calibration.json").exists()
    assert "it limits --corrupt and --ood" in evaluate(run, "--limit", 3).stderr
