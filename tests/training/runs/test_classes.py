"""Recall by class and the confusion matrix."""

import csv
import errno
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from coserve_training.errors import RunError
from coserve_training.runs.classes import ClassScores, Confusion, ConfusionMatrix, check_matrix_file


@pytest.fixture
def matrix() -> ConfusionMatrix:
    targets = torch.tensor([0, 0, 0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 0, 1, 0, 0])
    return ConfusionMatrix.count(torch.eye(3)[predicted], targets, ["cat", "dog", "owl, snowy"])


def test_recall_and_confusions(matrix: ConfusionMatrix) -> None:
    assert matrix.classes == [
        ClassScores("cat", 4, 3, 0.75), ClassScores("dog", 2, 0, 0.0), ClassScores("owl, snowy", 0, 0, None),
    ]  # fmt: skip
    assert matrix.balanced_accuracy == 0.375
    assert matrix.confusions == [Confusion("dog", "cat", 2), Confusion("cat", "dog", 1)]


def test_the_matrix_as_csv(matrix: ConfusionMatrix, tmp_path: Path) -> None:
    matrix.write(tmp_path / "m.csv")
    rows = list(csv.reader((tmp_path / "m.csv").read_text("utf-8").splitlines()))
    assert rows[0][1:] == ["cat", "dog", "owl, snowy"]
    assert rows[1:] == [["cat", "3", "1", "0"], ["dog", "2", "0", "0"], ["owl, snowy", "0", "0", "0"]]


@pytest.mark.parametrize("classes", [2, 3, 40, 300])
def test_the_matrix_as_a_picture(classes: int, tmp_path: Path) -> None:
    """Class 0 is always taken for the last one, the others are right."""
    targets = torch.arange(classes)
    predicted = targets.clone()
    predicted[0] = classes - 1
    labels = [f"class {index}" for index in range(classes)]
    ConfusionMatrix.count(torch.eye(classes)[predicted], targets, labels).write(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        cell = max(1, min(64, 1600 // classes))
        margin = picture.width - classes * cell
        assert picture.width == picture.height

        def colour(row: int, column: int) -> object:
            return picture.getpixel((margin + column * cell, margin + row * cell))

        assert colour(0, classes - 1) == colour(1, 1) == (8, 48, 107)
        assert colour(0, 0) == colour(1, 0) == (255, 255, 255)


def test_a_file_that_cannot_be_written_is_told_before_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"m.jpg: a confusion matrix is written as .csv or .png"):
        check_matrix_file(tmp_path / "m.jpg")
    with pytest.raises(RunError, match="there is no folder"):
        check_matrix_file(tmp_path / "absent/m.png")
    check_matrix_file(tmp_path / "m.PNG")
    assert not list(tmp_path.iterdir())
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(RunError, match=r"m.csv is a folder; name a file"):
        check_matrix_file(tmp_path / "m.csv")


def test_a_folder_that_cannot_be_written_to_is_told_before_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir / "tmp"))

    # Root may write everywhere.
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(RunError, match=r"m.csv: cannot be written: Permission denied"):
        check_matrix_file(tmp_path / "m.csv")
