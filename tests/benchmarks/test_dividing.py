"""Which trainings are compared, and what their table and page say, with `coserve` replaced by a recorder."""

import csv
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import dividing
import dividing_page

from coserve_training.recipes import with_recipe

DOUBT = {name: {"aurc": 0.1} for name in ("confidence", "disagreement")}


def scores(members: int, top1: float) -> str:
    """Return what `coserve evaluate --calibrate --json` prints, as far as it is read."""
    one = {"top1": top1, "nll": 0.5, "ece": 0.1}
    subsets = [
        {"members": list(range(size)), "calibrated_nll": size, "calibrated_ece": 0.05} for size in (1, 2)
    ]
    return json.dumps({
        "ensemble": one,
        "members": [one] * members,
        "subsets": subsets[:members],
        "disagreement": 0.2,
        "pairwise_disagreement": 0.1,
        "selective_accuracy": DOUBT,
    })  # fmt: skip


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the commands instead of running them."""
    recorded: list[list[str]] = []

    def evaluate(command: list[str], text: bool) -> str:
        assert text
        return scores(2 if "_s2_" in command[2] else 1, 0.8)

    def train(command: list[str], check: bool, pass_fds: list[int]) -> None:
        assert check
        folder = Path(command[command.index("--output") + 1])
        assert os.path.samestat(os.fstat(pass_fds[0]), folder.with_suffix(".lock").stat())
        recorded.append(command)

    monkeypatch.setattr(dividing, "subprocess", SimpleNamespace(run=train, check_output=evaluate))
    return recorded


def compare(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    paths = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    monkeypatch.setattr(sys, "argv", ["dividing.py", "--data", "a.zip", *paths, *options])
    dividing.main()


def test_one_member_is_trained_once_whatever_the_ways() -> None:
    ways = list(dividing.WAYS)
    assert [(one.way, one.split) for one in dividing.plan([1, 2], ways, [0])] == [
        ("co-trained", 1),
        ("co-trained", 2),
        ("independent", 2),
        ("same view", 2),
    ]
    alone = [(one.way, one.split, one.seed) for one in dividing.plan([1, 2], ["independent"], [3, 4])]
    assert alone == [("co-trained", 1, 3), ("independent", 2, 3), ("co-trained", 1, 4), ("independent", 2, 4)]


def test_what_is_missing_is_trained_and_written_to_the_table(
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my_own.toml").write_text("cutout = 8\n")
    recipe = (
        "--recipe",
        str(tmp_path / "my_own.toml"),
        "--splits",
        "1",
        "2",
        "--ways",
        "independent",
        "--seeds",
    )
    begun = tmp_path / "runs/wide_resnet10_4_my-own_8_epochs/independent_s2_seed0"
    begun.mkdir(parents=True)
    config = {"data": ["a.zip"], "network": "wide_resnet10_4", "split": 2, "epochs": 8, "cutout": 8}
    # It was stopped in its first epoch.
    (begun / "config.json").write_text(json.dumps({"config": config | {"co_training_weight": 0.0}}))
    compare(tmp_path, monkeypatch, *recipe, "0")
    assert ["--resume" in command for command in commands] == [False, True]
    assert commands[0][:4] == ["coserve", "train", *recipe[:2]]
    assert commands[1][-4:] == [str(begun), "--co-training-weight", "0.0", "--resume"]
    compare(tmp_path, monkeypatch, *recipe, "10", "2", "0")
    assert len(commands) == 6
    assert "independent_s2_seed0 is done" in capsys.readouterr().err

    (table,) = (tmp_path / "results").iterdir()
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["way"], row["split"], row["seed"]) for row in rows] == [
        *(("co-trained", "1", seed) for seed in ("0", "2", "10")),
        *(("independent", "2", seed) for seed in ("0", "2", "10")),
    ]
    assert (rows[0]["disagreement"], rows[0]["aurc_disagreement"], rows[0]["calibrated_nll"]) == ("", "", "1")
    assert (rows[3]["disagreement"], rows[3]["aurc_disagreement"], rows[3]["calibrated_nll"]) == (
        "0.2",
        "0.1",
        "2",
    )
    page = "\n".join(dividing_page.section(table))
    assert page.startswith("### wide_resnet10_4, recipe my-own, 8 epochs\n")


def test_rows_and_runs_of_other_settings_are_refused(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text("cutout = 8\n")
    options = ("--recipe", str(recipe), "--splits", "2", "--seeds")
    compare(tmp_path, monkeypatch, *options, "0")
    (table,) = (tmp_path / "results").iterdir()
    assert {row["data"] for row in dividing.read(table)} == {"a.zip"}

    refused = rf"^{table}: co-trained_s2_seed0 was trained with data a.zip, not a.zip b.zip; other settings"
    with pytest.raises(dividing.OtherSettingsError, match=refused):
        compare(tmp_path, monkeypatch, *options, "1", "--data", "b.zip")
    recipe.write_text("cutout = 9\n")
    with pytest.raises(dividing.OtherSettingsError, match="seed0 was trained with recipe_hash "):
        compare(tmp_path, monkeypatch, *options, "1")
    assert len(commands) == 3

    # Lines of earlier versions do not tell.
    lines = table.read_text().splitlines()
    table.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in lines))
    config = {
        "data": ["/elsewhere/a.zip"],
        "network": "wide_resnet10_4",
        "split": 2,
        "cutout": 8,
        "epochs": 8,
    }
    run = tmp_path / "runs" / table.stem / "co-trained_s2_seed1" / "config.json"
    run.parent.mkdir()
    run.write_text(json.dumps({"config": config}))
    with pytest.raises(dividing.OtherSettingsError, match=rf"^{run}: co-trained_s2_seed1 was trained with r"):
        compare(tmp_path, monkeypatch, *options, "1")
    recipe.write_text("cutout = 8\n")
    compare(tmp_path, monkeypatch, *options, "1")
    assert len(commands) == 6


def test_the_options_of_the_ways_are_those_of_the_command() -> None:
    flags = [dividing.flag(*option) for way in dividing.WAYS.values() for option in way.items()]
    assert flags == [("--co-training-weight", "0.0"), ("--no-own-views",)]


def test_differences_are_listed_by_seed() -> None:
    top1 = {("co-trained", "1"): (0.80, 0.80, 0.80), ("co-trained", "2"): (0.81, 0.82, 0.83)}
    rows = [
        {"way": way, "split": split, "seed": seed, "top1": str(value)}
        for (way, split), values in top1.items()
        for seed, value in zip(("0", "2", "10"), values, strict=True)
    ]
    _, row = dividing_page.differences(rows)
    assert row == ["S=2, co-trained, against S=1", "+2.00", "0.58", "+1.00, +2.00, +3.00"]


def test_the_recipe_without_cutout_differs_in_nothing_else() -> None:
    own = Path(dividing.__file__).parent / "recipes/cifar-fast-without-cutout.toml"
    given = {"network": "wide_resnet10_4", "data": ["cifar10-train.zip"]}
    assert with_recipe(str(own), given) == with_recipe("cifar-fast", {**given, "cutout": 0})
