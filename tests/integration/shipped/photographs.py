"""A hundred labelled photographs, copies of them with other colours, and what a server answers."""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from coserve_client import Client, Image, Result

ARCHIVE = Path(__file__).with_name("cifar10.zip")
Pixels = NDArray[np.float64]

RECOLOURED: dict[str, Callable[[Pixels], Pixels]] = {
    "red and blue exchanged": lambda pixels: pixels[..., ::-1],
    "half the contrast": lambda pixels: 128 + (pixels - 128) / 2,
    "twice the contrast": lambda pixels: 128 + (pixels - 128) * 2,
}
"""Changes of RGB values from 0 to 255; the results are clipped."""


@dataclass(frozen=True)
class Photograph:
    label: str
    file: Image

    def recoloured(self, change: Callable[[Pixels], Pixels]) -> "Photograph":
        with Picture.open(io.BytesIO(self.file.data)) as picture:
            pixels = change(np.asarray(picture.convert("RGB"), float)).clip(0, 255).round()
        file = io.BytesIO()
        Picture.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return Photograph(self.label, Image(file.getvalue(), self.file.filename))


def read_photographs() -> list[Photograph]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return [
            Photograph(PurePosixPath(name).parent.name, Image(archive.read(name), name))
            for name in sorted(archive.namelist())
        ]


@dataclass(frozen=True)
class Answers:
    """Results for labelled photographs, one each."""

    labels: list[str]
    results: list[Result]

    @property
    def predicted(self) -> list[str]:
        return [result.predictions[0].label for result in self.results]

    @property
    def members_predicted(self) -> list[list[str]]:
        """Return each member's predictions, in the order of the members."""
        by_image = [list((result.member_predictions or {}).values()) for result in self.results]
        return [[own[0].label for own in member] for member in zip(*by_image, strict=True)]

    @property
    def nll(self) -> float:
        """Return the mean negative log-likelihood of the labels, in nats."""
        losses = []
        for label, result in zip(self.labels, self.results, strict=True):
            (probability,) = (p.probability for p in result.predictions if p.label == label)
            losses.append(-math.log(max(probability, 1e-12)))
        return sum(losses) / len(losses)


def classify(client: Client, model: str, photographs: list[Photograph]) -> Answers:
    """Ask for every class's probability, of the ensemble and of its members."""
    results = []
    files = [photograph.file for photograph in photographs]
    for outcome in client.classify_many(files, model=model, top_k=1000, member_predictions=True):
        assert outcome.result is not None, outcome.error
        assert outcome.reply is not None
        assert not outcome.reply.degraded
        results.append(outcome.result)
    return Answers([photograph.label for photograph in photographs], results)
