"""How well doubt tells images of other kinds from those that an ensemble knows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve_training.doubt.measures import measure_doubt
from coserve_training.errors import DataError

PASSING_PERCENT = 95
"""Percentage of the known images that must pass the threshold."""


@dataclass(frozen=True)
class Separation:
    """How far a measure of doubt separates two sets of images.

    Attributes:
        auroc: probability that another image is doubted more than a known one. Equal doubt counts as half;
            0.5 is chance.
        fpr95: fraction of the other images that pass as known at the threshold that at least 95% of the
            known ones pass (arXiv 1706.02690). Lower is better; 0.95 is chance.
    """

    auroc: float
    fpr95: float


@dataclass(frozen=True)
class Detection:
    """How far a measure separates two sets of images.

    Attributes:
        ensemble: by the ensemble's doubt.
        member: by one member's doubt, averaged over the members; None for a measure that needs several.
    """

    ensemble: Separation
    member: Separation | None


def separate(known: Tensor, others: Tensor) -> Separation:
    """Compare the doubt about known images `[N]` with that about other images `[M]`.

    Raises:
        DataError: if there are no images of one kind, or doubt is not a number.
    """
    if not len(known) or not len(others):
        raise DataError("telling images of other kinds apart needs images of both kinds")
    if known.isnan().any() or others.isnan().any():
        raise DataError("telling images of other kinds apart needs numbers, but the doubt about some is NaN")
    ordered = known.sort().values
    below = torch.searchsorted(ordered, others)
    not_above = torch.searchsorted(ordered, others, right=True)
    # At least the given percentage: round up, in integers.
    threshold = ordered[-(-PASSING_PERCENT * len(known) // 100) - 1]
    return Separation(
        auroc=round(float((below + not_above).double().mean()) / (2 * len(known)), 6),
        fpr95=round(float((others <= threshold).double().mean()), 6),
    )


def detect(known: Tensor, others: Tensor) -> dict[str, Detection]:
    """Compare every measure of doubt on two sets of images.

    Args:
        known: members' logits `[S, N, C]` on images like the training images.
        others: members' logits `[S, M, C]` on images of other kinds.
    """
    by_member = [_separate_all(known[[i]], others[[i]]) for i in range(len(known))]
    return {
        name: Detection(separation, _mean([one[name] for one in by_member if name in one]))
        for name, separation in _separate_all(known, others).items()
    }


def _separate_all(known: Tensor, others: Tensor) -> dict[str, Separation]:
    doubt = measure_doubt(others)
    return {name: separate(values, doubt[name]) for name, values in measure_doubt(known).items()}


def _mean(separations: Sequence[Separation]) -> Separation | None:
    if not separations:
        return None
    auroc = sum(one.auroc for one in separations) / len(separations)
    fpr95 = sum(one.fpr95 for one in separations) / len(separations)
    return Separation(round(auroc, 6), round(fpr95, 6))
