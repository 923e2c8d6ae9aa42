"""Validation images choose and calibrate, test images are scored; one of them does both alone."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_training.config import TrainConfig
from coserve_training.data import load_dataset
from coserve_training.errors import DataError
from coserve_training.runs.calibrate import calibrate_run, fit_temperature
from coserve_training.runs.evaluate import evaluate_run, held_out_logits
from coserve_training.runs.folder import Checkpoint, load_run
from coserve_training.runs.images import ImageRecord, read_known
from coserve_training.runs.subsets import member_subsets
from coserve_training.training_run import train

LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def data(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy `image_folder`, and add `val/` with five grey, noisy images of each class."""
    root = Path(shutil.copytree(image_folder, tmp_path_factory.mktemp("splits") / "data"))
    random = np.random.default_rng(1)
    for index, label in enumerate(LABELS):
        (root / "val" / label).mkdir(parents=True)
        for number in range(5):
            grey = np.clip(random.normal(120 + 20 * index, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(root / "val" / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def config(data: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(data),), network="wide_resnet10_1", split=2, epochs=3, batch_size=40, image_size=16
    )


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(config: TrainConfig, lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config, folder, report=lines.append)
    return folder


def silent(_: str) -> None:
    """Discard a line."""


def only(data: Path, folder: Path, *splits: str) -> Path:
    """Copy some splits of the data."""
    for split in splits:
        shutil.copytree(data / split, folder / split)
    return folder


def counts(*paths: Path) -> tuple[int, int, int]:
    dataset = load_dataset(paths, 32, workers=0)
    train, val, test = (
        [] if split is None else split for split in (dataset.train, dataset.val, dataset.test)
    )
    return len(train), len(val), len(test)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_data_set_has_three_splits(data: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "val").rename(copy / name)
    assert counts(copy) == (120, 15, 30)
    assert counts(Path(shutil.make_archive(str(tmp_path / "data"), "zip", copy))) == (120, 15, 30)
    parts = [only(data, tmp_path / split, split) for split in ("train", "val", "test")]
    assert counts(*parts) == (120, 15, 30)


def test_the_only_held_out_split_is_named(data: Path, tmp_path: Path) -> None:
    for split, size in (("val", 15), ("test", 30)):
        dataset = load_dataset([only(data, tmp_path / split, "train", split)], 32, workers=0)
        assert (dataset.test_name, dataset.val) == (split, None)
        assert dataset.test is not None
        assert len(dataset.test) == size


def test_kaggles_validation_images_stand_beside_a_test_split(data: Path, tmp_path: Path) -> None:
    """ImageNet's `val/` may hold images outside class folders, beside a `test/` that a user has sorted."""
    copy = only(data, tmp_path / "imagenet", "train", "test")
    (copy / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    for number, file in enumerate(sorted((data / "val").rglob("*.png"))):
        shutil.copy(file, copy / f"val/ILSVRC2012_val_{number:08}.png")
        rows.append(f"ILSVRC2012_val_{number:08},{file.parent.name} 1 2 3 4")
    (copy / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    assert counts(copy) == (120, 15, 30)
    shutil.rmtree(copy / "test")
    assert counts(copy) == (120, 0, 15)


def test_the_best_epoch_is_chosen_on_val_and_scores_are_of_test(
    run: Path, data: Path, lines: list[str]
) -> None:
    assert lines[0] == "15 val images choose the best epoch; 30 test images are scored"
    assert re.search(r"  train [\d.]+%  val [\d.]+%  ", lines[1])
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert not [name for name in rows[0] if name.startswith("test_")]
    accuracies = [float(row["val_top1"]) for row in rows]
    as_val = evaluate_run(run, only(data, run.parent / "as_val", "val"), report=silent)
    assert accuracies[-1] == pytest.approx(as_val.ensemble.top1, abs=1e-5)
    best = load_run(run, "best")
    assert best.provenance["training"]["epochs"] == 1 + accuracies.index(max(accuracies))  # type: ignore[index]
    assert best.provenance["training"]["chosen_on"] == "val"  # type: ignore[index]
    recorded = json.loads((run / "evaluation.json").read_text())
    assert (recorded["images"], recorded["split"]) == (30, "test")
    as_test = evaluate_run(run, only(data, run.parent / "as_test", "test"), report=silent)
    assert recorded["ensemble"]["top1"] == as_test.ensemble.top1
    assert recorded["ensemble"]["nll"] == pytest.approx(as_test.ensemble.nll, abs=1e-4)


def test_temperatures_are_fitted_on_val_and_scored_on_test(run: Path) -> None:
    evaluation, calibration, subsets = calibrate_run(run, report=silent)
    assert (evaluation.split, evaluation.images) == ("test", 30)
    assert (calibration.split, calibration.images) == ("val", 15)
    _, test, val = held_out_logits(run, report=silent, calibrating=True)
    assert val is not None
    for size, members in member_subsets(2).items():
        means = [val.logits[list(some)].mean(0) for some in members]
        assert calibration.temperatures[size] == fit_temperature(means, val.targets)
    divided = test.logits.mean(0) / calibration.temperatures[2]
    nll = torch.nn.functional.cross_entropy(divided, test.targets)
    assert subsets[-1].calibrated_nll == pytest.approx(float(nll), abs=1e-4)
    provenance = load_run(run).provenance
    assert provenance["accuracy"]["split"] == "test"  # type: ignore[index]
    assert provenance["calibration"]["split"] == "val"  # type: ignore[index]


def test_the_command_says_which_split_scores_are_of(run: Path, data: Path, tmp_path: Path) -> None:
    def evaluate(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "scored on the test split\n" in evaluate(run)
    assert "Everything is fitted on the 15 images of val/." in " ".join(evaluate(run, "--calibrate").split())
    assert json.loads(evaluate(run, "--json"))["split"] == "test"
    other = only(data, tmp_path / "val", "val")
    assert "scored on the val split; there is no test split\n" in evaluate(run, "--data", other)
    assert "too good" not in evaluate(run, "--checkpoint", "best")


def test_images_that_were_held_out_in_val_stay_there(run: Path, config: TrainConfig, tmp_path: Path) -> None:
    data = Path(shutil.copytree(config.data[0], tmp_path / "data"))
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    resumed = replace(config, data=(str(data),))
    (data / "val/red/0.png").rename(data / "train/red/moved.png")
    lines: list[str] = []
    train(resumed, copy, resume=True, report=lines.append)
    assert "1 test images lie in train/ now; they are not trained on" in lines
    assert "15 val images choose the best epoch; 30 test images are scored" in lines
    (data / "val/red/1.png").rename(data / "test/red/moved.png")
    lines.clear()
    train(resumed, copy, resume=True, report=lines.append)
    assert lines[1].startswith("1 test images are validation images too, so scores of the best epoch")
    shutil.copy(data / "train/red/000.png", data / "val/red/copy.png")
    with pytest.raises(
        DataError, match=r"^1 of 4 val images were trained on|^1 of 14 val images were trained on"
    ):
        train(resumed, copy, resume=True, report=silent)
    known = read_known(run)
    assert known is not None
    assert (len(known.trained), len(known.tested), len(known.chosen)) == (120, 45, 15)


def test_int8_is_calibrated_on_val_rather_than_on_test(run: Path, data: Path, tmp_path: Path) -> None:
    held_out = only(data, tmp_path / "data", "val", "test")
    for record in (ImageRecord(), ImageRecord.read(run)):
        assert len(record.load_calibration([held_out], 32)[1]) == 15
    test = only(data, tmp_path / "test", "test")
    with pytest.raises(DataError, match="all images are test images; calibrate on others"):
        ImageRecord.read(run).load_calibration([test], 32)


def noted(run: Path, data: Path | None, checkpoint: Checkpoint = "best") -> str:
    lines: list[str] = []
    held_out_logits(run, data, checkpoint, report=lines.append)
    return "".join(line for line in lines if "best.ckpt" in line)


def test_a_run_that_gets_a_val_split_chooses_on_it_from_then_on(
    config: TrainConfig, data: Path, tmp_path: Path
) -> None:
    copy = only(data, tmp_path / "data", "train", "test")
    shorter = replace(config, data=(str(copy),), epochs=1)
    train(shorter, tmp_path / "run", report=silent)
    assert load_run(tmp_path / "run").provenance["training"]["chosen_on"] == "test"  # type: ignore[index]
    elsewhere = only(data, tmp_path / "elsewhere", "test")
    too_good = "best.ckpt was chosen by its accuracy on {} images, so its scores are too good"
    assert noted(tmp_path / "run", None).startswith(too_good.format("these"))
    assert noted(tmp_path / "run", elsewhere).startswith(too_good.format("these"))
    assert not noted(tmp_path / "run", elsewhere, "last")
    for label in LABELS:
        Image.new("RGB", (32, 32)).save(elsewhere / f"test/{label}/0_new.png")
        (elsewhere / f"test/{label}/000.png").unlink()
    assert noted(tmp_path / "run", elsewhere).startswith(too_good.format("27 of these 30"))
    shutil.copytree(data / "val", copy / "val")
    lines: list[str] = []
    train(replace(shorter, epochs=2), tmp_path / "run", resume=True, report=lines.append)
    assert "best.ckpt is chosen on val images from now on, not on test images" in lines
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert [(row["test_top1"] == "", row["val_top1"] == "") for row in rows] == [(False, True), (True, False)]
    assert load_run(tmp_path / "run", "best").provenance["training"]["epochs"] == 2  # type: ignore[index]
