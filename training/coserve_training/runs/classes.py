"""Scores by class: recall, and which classes are taken for which."""

import csv
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from coserve_training.errors import RunError
from coserve_training.runs.folder import write_atomically

SUFFIXES = (".csv", ".png")
PICTURE_PIXELS = 1600
"""Side of the picture that the cells of a matrix share."""
LABEL_CHARACTERS = 24


@dataclass(frozen=True)
class ClassScores:
    """Recall of one class.

    Attributes:
        label: name of the class.
        images: number of its images.
        correct: number of them that are predicted as this class.
        recall: `correct` / `images`; None without images.
    """

    label: str
    images: int
    correct: int
    recall: float | None


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were predicted as another."""

    actual: str
    predicted: str
    images: int


@dataclass(frozen=True)
class ConfusionMatrix:
    """Numbers of images by class and predicted class.

    Attributes:
        labels: names of the classes, by index.
        counts: rows of actual classes, columns of predicted classes, int64 `[C, C]`.
    """

    labels: list[str]
    counts: Tensor

    @classmethod
    def count(cls, logits: Tensor, targets: Tensor, labels: Sequence[str]) -> "ConfusionMatrix":
        """Count the predictions of logits `[N, C]` for images of classes `[N]`."""
        classes = len(labels)
        cells = targets * classes + logits.argmax(-1)
        counts = torch.bincount(cells, minlength=classes**2).view(classes, classes)
        return cls(list(labels), counts)

    @property
    def classes(self) -> list[ClassScores]:
        """Recall of each class, by index."""
        correct = self.counts.diagonal().tolist()
        totals = self.counts.sum(1).tolist()
        return [
            ClassScores(label, total, right, round(right / total, 6) if total else None)
            for label, total, right in zip(self.labels, totals, correct, strict=True)
        ]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        recalls = [one.recall for one in self.classes if one.recall is not None]
        return round(sum(recalls) / len(recalls), 6)

    @property
    def confusions(self) -> list[Confusion]:
        """Pairs of different classes with at least one image, the most frequent first."""
        wrong = self.counts.clone()
        wrong.fill_diagonal_(0)
        pairs = [
            Confusion(self.labels[actual], self.labels[predicted], int(wrong[actual, predicted]))
            for actual, predicted in wrong.nonzero().tolist()
        ]
        return sorted(pairs, key=lambda pair: -pair.images)

    def write(self, file: Path) -> None:
        """Write the matrix as `.csv` or as a picture, `.png`.

        Raises:
            RunError: if the file cannot be written.
        """
        write_atomically(file, self._csv() if file.suffix.lower() == ".csv" else self._picture())

    def _csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["actual \\ predicted", *self.labels])
        for label, row in zip(self.labels, self.counts.tolist(), strict=True):
            writer.writerow([label, *row])
        return text.getvalue().encode()

    def _picture(self) -> bytes:
        """Draw each row's shares, from white to dark blue. Large cells show their numbers."""
        classes = len(self.labels)
        cell = max(1, min(64, PICTURE_PIXELS // classes))
        shares = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        colours = torch.tensor([255.0, 255, 255]) + shares[..., None] * torch.tensor([-247.0, -207, -148])
        matrix = Image.fromarray(colours.round().byte().numpy()).resize(
            (classes * cell, classes * cell), Image.Resampling.NEAREST
        )
        font = ImageFont.load_default(max(8, min(14, cell - 2)))
        names = [
            label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"
            for label in self.labels
        ]
        labelled = cell >= 10
        margin = 8 + int(max(map(font.getlength, names))) if labelled else 0
        picture = Image.new("RGB", (margin + matrix.width, margin + matrix.height), "white")
        picture.paste(matrix, (margin, margin))
        draw = ImageDraw.Draw(picture)
        if labelled:
            columns = Image.new("RGB", (margin, matrix.width), "white")
            for at, name in enumerate(names):
                middle = at * cell + cell // 2
                draw.text((margin - 4, margin + middle), name, "black", font, anchor="rm")
                ImageDraw.Draw(columns).text((4, middle), name, "black", font, anchor="lm")
            picture.paste(columns.transpose(Image.Transpose.ROTATE_90), (margin, 0))
        if cell >= 28:
            for row, values in enumerate(self.counts.tolist()):
                for column, count in enumerate(values):
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    centre = (margin + column * cell + cell // 2, margin + row * cell + cell // 2)
                    draw.text(centre, str(count), colour, font, anchor="mm")
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()


def check_matrix_file(file: Path) -> None:
    """Check, before an evaluation, that its matrix can be written.

    Raises:
        RunError: for another suffix, a folder in its place, or one around it that cannot be written to.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise RunError(f"{file}: a confusion matrix is written as {' or '.join(SUFFIXES)}")
    if not file.parent.is_dir():
        raise RunError(f"{file}: there is no folder {file.parent}")
    if file.is_dir():
        raise RunError(f"{file} is a folder; name a file to write the confusion matrix to")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error.strerror}") from error
