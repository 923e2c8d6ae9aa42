"""Records of accuracy and calibration in a run folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from coserve_training.errors import DataError, RunError
from coserve_training.runs.calibrate import calibrate_run
from coserve_training.runs.evaluate import evaluate_run, write_evaluation
from coserve_training.runs.folder import load_run
from tests.training.untrained_run import write_checkpoint, write_run


@pytest.fixture
def run(image_folder: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", image_folder)


def test_a_calibration_is_in_the_provenance(run: Path, image_folder: Path) -> None:
    evaluation, calibration, subsets = calibrate_run(run, [image_folder])
    provenance = json.loads(json.dumps(load_run(run).provenance))
    accuracy = provenance["accuracy"]
    assert accuracy["images"] == provenance["calibration"]["images"] == 30
    assert accuracy["disagreement"] == evaluation.disagreement
    assert [subset["members"] for subset in accuracy["subsets"]] == [[0], [1], [0, 1]]
    for subset, scores in zip(accuracy["subsets"], [*accuracy["members"], accuracy["ensemble"]], strict=True):
        for name in ("top1", "nll", "ece"):
            assert subset[name] == pytest.approx(scores[name], abs=1e-5)
    assert provenance["calibration"]["temperatures"] == {
        "1": calibration.temperatures[1],
        "2": calibration.temperatures[2],
    }
    assert provenance["calibration"]["ece_after"] == subsets[-1].calibrated_ece
    assert "weights" not in provenance


def test_evaluating_again_keeps_a_calibration(run: Path, image_folder: Path) -> None:
    calibrate_run(run, [image_folder])
    provenance = load_run(run).provenance
    evaluation = evaluate_run(run, [image_folder])
    write_evaluation(run, evaluation, "last", 4)
    assert load_run(run).provenance == provenance


def test_a_calibration_belongs_to_its_checkpoint(run: Path, image_folder: Path) -> None:
    calibrate_run(run, [image_folder], "last")
    assert not {"accuracy", "calibration"} & load_run(run, "best").provenance.keys()
    calibrate_run(run, [image_folder], "best")
    last, best = (load_run(run, name).provenance["calibration"] for name in ("last", "best"))
    assert last != best
    write_checkpoint(run, "last", epochs=4, seed=2)
    assert not {"accuracy", "calibration"} & load_run(run).provenance.keys()
    assert load_run(run, "best").provenance["calibration"] == best


def test_evaluations_of_earlier_versions_are_read(run: Path, image_folder: Path) -> None:
    evaluation = evaluate_run(run, [image_folder])
    write_evaluation(run, evaluation, "last", 4)
    record = json.loads((run / "evaluation.json").read_text())
    del record["disagreement"], record["pairwise_disagreement"], record["split"]
    (run / "evaluation.json").write_text(json.dumps(record))
    accuracy = load_run(run).provenance["accuracy"]
    assert accuracy == {key: record[key] for key in ("images", "ensemble", "members")}
    write_checkpoint(run, "last", epochs=3, seed=0)
    assert "accuracy" not in load_run(run).provenance


@pytest.mark.parametrize("content", ["{", "[]", "3", "{}"])
def test_damaged_records_are_named(run: Path, content: str) -> None:
    for name in ("last.calibration.json", "evaluation.json"):
        (run / name).write_text(content)
        with pytest.raises(RunError, match=rf"{name}: damaged"):
            load_run(run)
        (run / name).unlink()


def test_too_few_images_are_refused(run: Path, image_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label in ("blue", "green", "red"):
        (data / "test" / label).mkdir(parents=True)
        for index in range(1 if label == "green" else 2):
            shutil.copy(image_folder / f"test/{label}/{index:03}.png", data / "test" / label)
    with pytest.raises(DataError, match="at least two test images of every class; green has 1"):
        calibrate_run(run, [data])
    shutil.rmtree(data / "test/green")
    with pytest.raises(DataError, match="green"):
        calibrate_run(run, [data])
    for file in (data / "test/red").iterdir():
        file.unlink()
    (data / "test/blue/001.png").unlink()
    with pytest.raises(DataError):
        calibrate_run(run, [data])
    assert not (run / "last.calibration.json").exists()


def test_members_without_finite_logits_are_named(run: Path, image_folder: Path) -> None:
    saved = torch.load(run / "last.ckpt")
    for key, value in saved["state_dict"].items():
        if key.startswith("members.1.") and value.shape == (3,):
            value.fill_(torch.nan)
    torch.save(saved, run / "last.ckpt")
    for use in (calibrate_run, evaluate_run):
        with pytest.raises(RunError, match="member 1 gives logits that are not finite"):
            use(run, [image_folder])
    assert not (run / "last.calibration.json").exists()
