"""Images that a score is measured on never calibrate int8, and images that a run trained on never measure."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coserve_export.accuracy import describe_scores, run_on
from coserve_export.ensemble import Member, Preprocessing
from coserve_export.errors import DescriptionError, NetworkError
from coserve_export.existing import export_onnx
from coserve_export.int8 import Int8
from coserve_export.labelled import LabelledImages, read_calibration, read_evaluation
from coserve_export.trained import export_networks
from coserve_training.config import TrainConfig
from coserve_training.data import Membership, load_dataset
from coserve_training.runs.calibrate import fit_temperature
from coserve_training.runs.evaluate import Outputs
from coserve_training.runs.folder import Description, Run
from coserve_training.runs.images import write_known

LABELS = ["cat", "dog", "frog", "ship", "naïve plane"]
SIZE = 8
PREPROCESSING = Preprocessing(SIZE, SIZE, SIZE, "bilinear", [0.5] * 3, [0.25] * 3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write twenty training images a class, and no test split; training holds out 009 and 019."""
    random = np.random.default_rng(4)
    for label in LABELS:
        folder = tmp_path / "data/train" / label
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = random.integers(0, 200, (1, 1, 3)) + random.integers(0, 56, (SIZE, SIZE, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
    return tmp_path / "data"


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    """Write what a run records of its images."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainConfig(data=(str(data),), network="wide_resnet10_1", image_size=SIZE)
    Description(config, LABELS, [0.5] * 3, [0.25] * 3, "data").write(folder)
    membership = Membership()
    load_dataset([data], SIZE, assign=membership.for_training, workers=0)
    write_known(folder, membership.known)
    return folder


def names(images: LabelledImages) -> set[str]:
    return {Path(source.name).name for source in images.sources}


def test_a_run_calibrates_on_training_images_and_is_measured_on_held_out_ones(data: Path, run: Path) -> None:
    evaluation = read_evaluation([data], LABELS, PREPROCESSING, run)
    assert (len(evaluation), names(evaluation)) == (10, {"009.png", "019.png"})
    calibration = read_calibration([data], LABELS, PREPROCESSING, run)
    assert len(calibration) == 90
    assert not names(calibration) & names(evaluation)
    assert calibration.notes == ["10 of 100 images in train/ are test images; nothing is calibrated on them"]
    elsewhere = data.parent / "elsewhere"
    shutil.copytree(data / "train", elsewhere / "train")
    for file in sorted(elsewhere.rglob("*.png")):
        file.rename(file.with_name(f"x{file.name}"))
    assert names(read_calibration([elsewhere], LABELS, PREPROCESSING, run)) == {
        f"x{name}" for name in names(calibration)
    }


def test_images_that_a_run_trained_on_measure_nothing(data: Path, run: Path) -> None:
    shutil.copytree(data / "train", data.parent / "again/test")
    with pytest.raises(
        DescriptionError, match=r"^90 of 100 test images were trained on: .*again/test/cat/000"
    ):
        read_evaluation([data.parent / "again"], LABELS, PREPROCESSING, run)


def test_calibration_data_of_test_images_alone_are_refused(data: Path, run: Path) -> None:
    for file in (data / "train").rglob("*.png"):
        if file.name not in ("009.png", "019.png"):
            file.unlink()
    (data / "train").rename(data / "test")
    with pytest.raises(DescriptionError, match=r"data: all images are test images; calibrate on others$"):
        read_calibration([data], LABELS, PREPROCESSING, run)


def test_a_run_of_an_earlier_version_says_that_it_has_no_record(data: Path, run: Path) -> None:
    (run / "images.npz").unlink()
    assert "has no record of its images" in read_calibration([data], LABELS, PREPROCESSING, run).notes[0]
    with pytest.raises(DescriptionError, match=r"no record of what training held out \(images.npz\)"):
        read_evaluation([data], LABELS, PREPROCESSING, run)


def test_exported_int8_uses_the_record_and_reports_the_data(
    make_run: Callable[..., Run], data: Path, run: Path, tmp_path: Path
) -> None:
    (data / "train/cat/notes.txt").write_text("not an image")
    options = Int8([data], [data], max_accuracy_loss=100)
    report = export_networks(make_run(folder=run), tmp_path / "repository", int8=options)
    assert report.accuracy_loss is not None
    assert report.parity is not None
    assert (report.accuracy_loss.images, report.parity.images) == (10, 45)
    assert report.to_json()["notes"] == report.notes
    assert "10 of 100 images in train/ are test images; nothing is calibrated on them" in report.notes
    assert sum(".txt" in note for note in report.notes) == 1


def test_files_are_not_calibrated_on_the_images_that_measure_them(
    make_onnx: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "train", data / "test")
    for file in (data / "test").rglob("*.png"):
        if file.name > "004.png":
            file.unlink()
    report = export_onnx(
        [make_onnx()],
        tmp_path / "repository",
        name="own",
        labels=LABELS,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        int8=Int8(data, data, max_accuracy_loss=100),
    )
    assert report.parity is not None
    assert report.parity.images == 37, "half of 75"
    assert report.notes == ["25 of 100 images are evaluation images; nothing is calibrated on them"]


def test_accuracy_is_not_measured_on_classes_of_the_same_name(data: Path) -> None:
    labels = ["crane", "dog", "frog", "ship", "crane"]
    with pytest.raises(DescriptionError, match=r"several classes have the same label \['crane'\]"):
        read_evaluation([data], labels, PREPROCESSING)


def test_val_calibrates_and_test_is_scored(data: Path) -> None:
    """Their outputs are chosen so that each calls for another temperature."""
    for split, chosen in (("val", "00[0-3].png"), ("test", "00[4-8].png")):
        for file in (data / "train").rglob(chosen):
            copy = data / split / file.parent.name / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    images = read_evaluation([data], LABELS, PREPROCESSING)
    assert images.val is not None
    assert (len(images), images.split, len(images.val), images.val.split) == (25, "test", 20, "val")
    assert names(images.val) == {"000.png", "001.png", "002.png", "003.png"}
    shutil.rmtree(data / "test")
    alone = read_evaluation([data], LABELS, PREPROCESSING)
    assert (len(alone), alone.split, alone.val) == (20, "val", None)
    logits = torch.randn(2, 25, 5, generator=torch.Generator().manual_seed(0))
    test = Outputs(logits, logits.mean(0).argmax(-1), "test")
    val = Outputs(5 * logits, (logits[0] - logits[1]).argmax(-1), "val")
    provenance = describe_scores(test, val, 5)
    assert provenance["accuracy"]["split"] == "test"  # type: ignore[index]
    assert provenance["calibration"]["split"] == "val"  # type: ignore[index]
    fitted = fit_temperature([val.logits.mean(0)], val.targets)
    assert provenance["calibration"]["temperatures"][2] == fitted  # type: ignore[index]
    assert describe_scores(test, None, 5)["calibration"]["split"] == "test"  # type: ignore[index]


def test_logits_that_are_not_finite_measure_nothing(make_onnx: Callable[..., Path], data: Path) -> None:
    """The network takes the root of an image's brightness above grey."""
    (data / "train").rename(data / "test")
    Image.new("RGB", (SIZE, SIZE), "white").save(data / "test/cat/000.png")
    Image.new("RGB", (SIZE, SIZE), "black").save(data / "test/cat/001.png")
    network = make_onnx(weights=np.eye(3, 5, dtype=np.float32), last=("Sqrt",))
    member = Member(network.read_bytes(), "pixels", "scores")
    images = read_evaluation([data], LABELS, PREPROCESSING)
    with pytest.raises(NetworkError, match=r"^member 0: its logits are not all finite for .*cat/001\.png$"):
        run_on([member], images)
