"""Selective accuracy: how accurate the answers are when those with the most doubt are withheld."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coserve_training.doubt.measures import measure_doubt
from coserve_training.errors import DataError

COVERAGES = (100, 95, 90, 80, 50)
"""Percentages of the images that are answered, in tables."""


@dataclass(frozen=True)
class SelectiveAccuracy:
    """The risk-coverage curve of a measure of doubt (Geifman & El-Yaniv, arXiv 1705.08500).

    The k images with the least doubt are answered. Their risk is the fraction of wrong answers among them.
    Images with equal doubt count as in random order: their risk is its expected value.

    Attributes:
        aurc: area under the curve, the mean risk over k = 1 to N (arXiv 1805.08206).
        excess_aurc: `aurc` less that of the best possible order, which puts all wrong answers last.
        accuracies: accuracy by coverage in percent, for `COVERAGES`.
        risks: risk at a coverage of 1, 2, …, 100%.
    """

    aurc: float
    excess_aurc: float
    accuracies: dict[int, float]
    risks: list[float]


def selective_accuracy(doubt: Tensor, correct: Tensor) -> SelectiveAccuracy:
    """Score the order of images by doubt.

    Args:
        doubt: doubt about each image `[N]`.
        correct: whether the answer is right, bool `[N]`.

    Raises:
        DataError: if there are no images, the shapes differ, or doubt is not a number.
    """
    if doubt.dim() != 1 or doubt.shape != correct.shape or not len(doubt):
        raise DataError(
            f"doubt and correct must be [images], not {list(doubt.shape)} and {list(correct.shape)}"
        )
    if doubt.isnan().any():
        raise DataError("selective accuracy needs numbers, but the doubt about some images is NaN")
    images = len(doubt)
    kept = torch.arange(1, images + 1, dtype=torch.float64)
    wrong = (~correct.bool()).double()
    risks = _errors_by_rank(doubt, wrong) / kept
    best = (kept - (images - wrong.sum())).clamp(min=0) / kept
    # At least the given percentage: round up, in integers.
    at = [float(risks[-(-images * percent // 100) - 1]) for percent in range(1, 101)]
    return SelectiveAccuracy(
        aurc=round(float(risks.mean()), 6),
        excess_aurc=round(float((risks - best).mean()), 6),
        accuracies={percent: round(1 - at[percent - 1], 6) for percent in COVERAGES},
        risks=[round(risk, 6) for risk in at],
    )


def score_doubt(logits: Tensor, targets: Tensor) -> dict[str, SelectiveAccuracy]:
    """Score every measure of doubt by the accuracy of the ensemble's remaining answers.

    Args:
        logits: members' logits `[S, N, C]`.
        targets: classes `[N]`.
    """
    correct = logits.mean(0).argmax(-1) == targets
    return {name: selective_accuracy(doubt, correct) for name, doubt in measure_doubt(logits).items()}


def _errors_by_rank(doubt: Tensor, wrong: Tensor) -> Tensor:
    """Return the expected number of wrong answers among the k images with the least doubt, for k = 1 to N."""
    _, groups, sizes = np.unique(doubt.numpy(), return_inverse=True, return_counts=True)
    errors = np.bincount(groups, wrong.numpy())
    return torch.from_numpy(np.repeat(errors / sizes, sizes).cumsum())
