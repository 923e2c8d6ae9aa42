import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coserve_training.config import TrainConfig
from coserve_training.data import load_dataset
from coserve_training.errors import DataError, RunError
from coserve_training.recipes import recipe_hash
from coserve_training.runs.calibrate import calibrate_run
from coserve_training.runs.evaluate import channel_statistics, evaluate_run, score
from coserve_training.runs.folder import Description, load_run
from coserve_training.training_run import train

METRICS = ["train_loss", "train_top1", "test_loss", "test_top1", "learning_rate"]


def silent(_: str) -> None:
    """Discard the line of an epoch."""


@pytest.fixture(scope="module")
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(image_folder),), network="wide_resnet10_1", split=2, epochs=4, batch_size=30, start_size=16
    )


@pytest.fixture(scope="module")
def run(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    train(config, folder, report=silent)
    return folder


def history(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_a_run_learns_and_leaves_everything_behind(run: Path) -> None:
    rows = history(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < 0.7 * float(rows[0]["train_loss"])
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["images"] == 30
    assert evaluation["ensemble"]["top1"] == pytest.approx(float(rows[-1]["test_top1"]), abs=1e-4)
    assert evaluation["ensemble"]["top1"] > 0.6
    assert len(evaluation["members"]) == 2
    assert sorted(file.name for file in run.iterdir()) == [
        ".lock", "best.ckpt", "config.json", "evaluation.json", "images.npz", "last.ckpt", "metrics.csv",
        "samples.npz",
    ]  # fmt: skip


def test_a_run_tests_its_images_as_later_evaluations_do(image_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=(str(image_folder),), network="wide_resnet10_1", epochs=1, batch_size=30, precision="fp32",
        evaluation_scale=1.25, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
    )  # fmt: skip
    train(config, tmp_path / "run", report=silent)
    description = Description.read(tmp_path / "run")
    assert (description.mean, description.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    now = evaluate_run(tmp_path / "run", report=silent).ensemble
    (epoch,) = history(tmp_path / "run")
    assert float(epoch["test_loss"]) == pytest.approx(now.nll, abs=1e-4)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["ensemble"]["nll"] == now.nll
    samples = load_run(tmp_path / "run").samples
    centres = load_dataset([image_folder], 32, resize_size=40, interpolation="bicubic").test
    assert centres is not None
    assert np.array_equal(samples, centres.images[:])


def test_a_loaded_run_describes_itself(run: Path) -> None:
    loaded = load_run(run)
    assert loaded.labels == ["blue", "green", "red"]
    assert loaded.samples.shape == (30, 32, 32, 3)
    assert loaded.preprocessing["height"] == loaded.preprocessing["resize_size"] == 32
    assert loaded.provenance["member_networks"] == ["wide_resnet10_1"] * 2
    assert loaded.provenance["training"] == {
        "recipe_hash": recipe_hash(Description.read(run).config),
        "seed": 0,
        "epochs": 4,
        "planned_epochs": 4,
        "checkpoint": "last",
        "chosen_on": "test",
    }
    assert loaded.provenance["accuracy"] == {
        key: value
        for key, value in json.loads((run / "evaluation.json").read_text()).items()
        if key not in ("checkpoint", "epochs")
    }
    first, second = (member(torch.zeros(1, 3, 32, 32)) for member in loaded.members)
    assert not torch.allclose(first, second)


def test_a_resumed_run_gives_the_same_results(config: TrainConfig, run: Path, tmp_path: Path) -> None:
    """A run that crashed after its second epoch continues with the results of an unbroken run."""
    epochs = []

    def crash_in_third(line: str) -> None:
        epochs.append(line)
        if len(epochs) == 2:
            raise MemoryError("as if killed")

    folder = tmp_path / "broken"
    with pytest.raises(MemoryError):
        train(config, folder, report=crash_in_third)
    assert not (folder / "evaluation.json").exists()
    train(config, folder, resume=True, report=silent)
    assert [row["epoch"] for row in history(folder)] == ["1", "2", "3", "4"]
    for broken, unbroken in zip(history(folder), history(run), strict=True):
        assert [float(broken[name]) for name in METRICS] == [float(unbroken[name]) for name in METRICS]
    for broken, unbroken in zip(load_run(folder).members, load_run(run).members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(broken.parameters(), unbroken.parameters(), strict=True))
    lines: list[str] = []
    again = train(config, folder, resume=True, report=lines.append)
    assert lines == ["4 of 4 epochs are finished; more --epochs would train on"]
    assert again is not None
    assert again.ensemble == evaluate_run(folder).ensemble
    assert len(history(folder)) == 4


def test_a_resumed_run_keeps_its_configuration(config: TrainConfig, run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"started with learning_rate 0.1, not 0.2"):
        train(replace(config, learning_rate=0.2), run, resume=True, report=silent)
    with pytest.raises(RunError, match="holds a run already; continue it with --resume"):
        train(config, run, report=silent)
    with pytest.raises(RunError, match="not a run folder"):
        train(config, tmp_path, resume=True, report=silent)


def test_evaluation_scores_ensemble_and_members(run: Path, image_folder: Path) -> None:
    for checkpoint in ("last", "best"):
        evaluation = evaluate_run(run, [image_folder], checkpoint)
        assert evaluation.images == 30
        assert len(evaluation.members) == 2
        assert 0 <= evaluation.ensemble.ece <= 1
        assert evaluation.ensemble.top5 == 1.0


def test_evaluation_needs_the_same_classes(run: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "data")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "red").rename(tmp_path / "data" / split / "scarlet")
    with pytest.raises(DataError, match=r"missing \['red'\], unknown \['scarlet'\]"):
        evaluate_run(run, [tmp_path / "data"])


def test_scores_of_known_logits() -> None:
    logits = torch.tensor([[2.0, 0, 0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0, 0, 0]])
    scores = score(logits, torch.tensor([0, 1]))
    confidence = math.exp(2) / (math.exp(2) + 6)
    assert scores.top1 == 0.5
    assert scores.nll == pytest.approx((-math.log(confidence) - math.log((1 - confidence) / 6)) / 2, rel=1e-5)
    assert scores.ece == pytest.approx(abs(confidence - 0.5), abs=1e-5)


def test_a_confidence_of_one_is_in_the_last_of_fifteen_bins() -> None:
    """In float32, softmax gives exactly 1 where the logits lie far apart."""
    sure = torch.tensor([30.0, 0.0]).repeat(100, 1)
    likely = torch.tensor([math.log(0.97 / 0.03), 0.0]).repeat(100, 1)
    assert sure.softmax(-1).max() == 1
    wrong = torch.tensor([1] * 2 + [0] * 198)
    # 98% and 100% right, with a mean confidence of 98.5%.
    assert score(torch.cat([sure, likely]), wrong).ece == pytest.approx(0.005, abs=1e-5)


def test_channel_statistics_are_those_of_the_pixels(image_folder: Path) -> None:
    split = load_dataset([image_folder], 32).train
    assert split is not None
    mean, std = channel_statistics(split)
    pixels = split.images.reshape(-1, 3) / 255
    assert mean == pytest.approx(pixels.mean(0).tolist(), abs=1e-4)
    assert std == pytest.approx(pixels.std(0).tolist(), abs=1e-4)


def test_a_run_can_start_from_another_runs_weights(config: TrainConfig, run: Path, tmp_path: Path) -> None:
    tuned = replace(config, initial=str(run), epochs=1, learning_rate=0.0, start_size=None)
    train(tuned, tmp_path / "tuned", report=silent)
    start = load_run(run)
    end = load_run(tmp_path / "tuned")
    for before, after in zip(start.members, end.members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert end.provenance["training"]["initial"] == start.provenance["training"]  # type: ignore[index]
    for change, message in (
        ({"network": "wide_resnet10_2"}, "holds network wide_resnet10_1, not wide_resnet10_2"),
        ({"split": 4}, "holds split 2, not 4"),
        ({"initial": str(tmp_path)}, "not a run folder"),
    ):
        with pytest.raises(RunError, match=message):
            train(replace(tuned, **change), tmp_path / "refused", report=silent)  # type: ignore[arg-type]
    assert not (tmp_path / "refused").exists()


def test_a_run_resumed_before_its_first_checkpoint_keeps_its_initial_weights(
    config: TrainConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise MemoryError("as if killed")

    tuned = replace(config, initial=str(run), epochs=1, learning_rate=0.0, start_size=None)
    with monkeypatch.context() as patch:
        patch.setattr("coserve_training.module.CoTraining.training_step", crash)
        with pytest.raises(MemoryError):
            train(tuned, tmp_path / "run", report=silent)
    assert not (tmp_path / "run" / "last.ckpt").exists()
    train(tuned, tmp_path / "run", resume=True, report=silent)
    for before, after in zip(load_run(run).members, load_run(tmp_path / "run").members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_without_a_test_split_every_tenth_image_is_held_out(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "data/train")
    lines: list[str] = []
    config = TrainConfig(data=(str(tmp_path / "data"),), network="resnet11", split=4, epochs=1, batch_size=54)
    evaluation = train(config, tmp_path / "run", report=lines.append)
    assert lines[0] == "no test split: 12 of 120 training images are held out"
    assert evaluation.images == 12
    assert evaluate_run(tmp_path / "run", [tmp_path / "data"]) == evaluation
    calibrate_run(tmp_path / "run", [tmp_path / "data"])
    shutil.copytree(image_folder / "test", tmp_path / "other/train")
    with pytest.raises(DataError, match=r"no test split .* and none of the images that training held out"):
        evaluate_run(tmp_path / "run", [tmp_path / "other"])


def test_a_class_too_small_to_hold_an_image_out_of_is_refused(
    config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "data/train")
    for file in sorted((tmp_path / "data/train/green").iterdir())[9:]:
        file.unlink()
    with pytest.raises(DataError, match=r"fewer than 10 training images, too few to hold one out: green$"):
        train(replace(config, data=(str(tmp_path / "data"),)), tmp_path / "run", report=silent)
    assert not (tmp_path / "run").exists()


def test_evaluating_reads_no_training_images(run: Path, image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    (data / "train/red/000.png").write_bytes(b"no image")
    assert evaluate_run(run, [data]) == evaluate_run(run, [image_folder])
    (data / "test/red/000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^1 of 30 images .* known format\); replace them$"):
        evaluate_run(run, [data])


def test_a_bf16_step_gives_no_nan(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, epochs=1, precision="bf16"), tmp_path / "run", report=silent)
    assert math.isfinite(float(history(tmp_path / "run")[0]["train_loss"]))
    assert all(
        torch.isfinite(p).all() for member in load_run(tmp_path / "run").members for p in member.parameters()
    )


def test_a_run_that_diverges_ends_and_keeps_what_it_had(config: TrainConfig, tmp_path: Path) -> None:
    diverging = replace(config, learning_rate=1e30, warmup_epochs=3)
    with pytest.raises(RunError, match=r"loss of epoch 1 is not finite"):
        train(diverging, tmp_path / "run", report=silent)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        ".lock", "config.json", "images.npz", "samples.npz",
    ]  # fmt: skip


def test_damaged_run_folders_are_named(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "best.ckpt").unlink()
    with pytest.raises(RunError, match=r"best.ckpt is missing"):
        load_run(copy, "best")
    (copy / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(RunError, match=r"last.ckpt: damaged"):
        load_run(copy)
    later = (copy / "config.json").read_text().replace('"seed"', '"later": 1, "seed"')
    for content in ("{", later):
        (copy / "config.json").write_text(content)
        with pytest.raises(RunError, match=r"config.json: damaged"):
            load_run(copy)


def test_fewer_images_than_a_batch_are_refused_before_anything_is_written(
    config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"do not fill one batch of 500; set .* to at most 120"):
        train(replace(config, batch_size=500), tmp_path / "run", report=silent)
    assert not (tmp_path / "run").exists()


def test_samples_are_held_out_images(run: Path, image_folder: Path) -> None:
    test = load_dataset([image_folder], 32).test
    assert test is not None
    assert np.array_equal(load_run(run).samples, test.images)
