"""Prediction sets that hold the true class as often as asked for, by split conformal prediction.

A method scores every class of an image, lower for likelier classes, and a set holds the classes whose score
does not exceed a threshold. Thresholds are quantiles of the true classes' scores on labelled images. Sets of
images of the same kind then hold the true class as often as asked for, however wrong the network is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import ceil
from typing import TypeVar

import torch
from torch import Tensor

from coserve_training.runs.evaluate import Outputs
from coserve_training.runs.subsets import Fit, Fold, SubsetMeans, member_subsets, one_in, select

COVERAGES = (0.9, 0.95, 0.99)
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""The penalties that are tried for RAPS: those of its authors' code."""
TUNING = 5
"""One in this number of images chooses RAPS' penalty and free classes; the others fit its thresholds."""
DIGITS = 8
"""Decimals of a threshold, rounded up. Confident networks have thresholds close to 0 or 1."""
BLOCK = 8192
"""The largest number of images whose classes are scored at once."""

Value = TypeVar("Value")
BySize = dict[float, dict[int, Value]]
"""Values by coverage, and by number of members that answered."""


@dataclass(frozen=True)
class SetScores:
    """Scores of prediction sets on images that their thresholds were not fitted on.

    Attributes:
        coverage: fraction of the sets that hold the true class.
        size: mean number of classes in a set.
        empty: fraction of the sets that hold no class.
    """

    coverage: float
    size: float
    empty: float


@dataclass(frozen=True)
class Lac:
    """Least ambiguous sets (arXiv 1609.00451): the smallest on average; empty if no class is probable enough.

    Attributes:
        images: number of images that the thresholds were fitted on.
        thresholds: the largest score in a set.
        measured: scores of the sets, averaged over the choices of that many members.
        images_when_measured: number of images that the thresholds of these sets were fitted on; if each half
            of the images measures the other's, the smaller number.
    """

    images: int
    thresholds: BySize[float]
    measured: BySize[SetScores] = field(default_factory=dict)
    images_when_measured: int = 0

    def scores(self, probabilities: Tensor) -> Tensor:
        """Score every class, `[N, C]`."""
        return lac_scores(probabilities)


@dataclass(frozen=True)
class Raps:
    """Regularized adaptive prediction sets (arXiv 2009.14193): larger for harder images, and never empty.

    Attributes:
        images: number of images that the thresholds were fitted on. They did not choose the penalty.
        penalty: added to the score of a class for each rank beyond the free classes.
        free_classes: number of classes without a penalty, at least 1.
        thresholds: the largest score in a set.
        measured: scores of the sets, averaged over the choices of that many members.
        images_when_measured: as in `Lac`.
    """

    images: int
    penalty: float
    free_classes: int
    thresholds: BySize[float]
    measured: BySize[SetScores] = field(default_factory=dict)
    images_when_measured: int = 0

    def scores(self, probabilities: Tensor) -> Tensor:
        """Score every class, `[N, C]`."""
        return raps_scores(probabilities, self.penalty, self.free_classes)


Method = TypeVar("Method", Lac, Raps)


@dataclass(frozen=True)
class PredictionSets:
    """Prediction sets by two methods."""

    lac: Lac
    raps: Raps


def lac_scores(probabilities: Tensor) -> Tensor:
    """Score every class by 1 - its probability, `[N, C]`."""
    return 1 - probabilities


def raps_scores(probabilities: Tensor, penalty: float, free_classes: int) -> Tensor:
    """Score every class by the probability of all likelier classes, plus a penalty for its rank, `[N, C]`.

    Classes of equal probability are ranked by index. The paper adds a random share u of the class's own
    probability. Here u is 0, so that the same image always gives the same set. With u = 1, the likeliest
    class of a confident answer would exceed the threshold.
    """
    ordered, classes = probabilities.sort(dim=-1, descending=True, stable=True)
    likelier = ordered.cumsum(-1) - ordered
    ranks = torch.arange(1, probabilities.shape[-1] + 1, dtype=probabilities.dtype)
    scores = likelier + penalty * (ranks - free_classes).clamp(min=0)
    return torch.empty_like(scores).scatter_(-1, classes, scores)


def conformal_threshold(scores: Tensor, images: int, coverage: float) -> float | None:
    """Return the smallest threshold that the true class of a new image meets with probability `coverage`.

    With one score per image, it is the ceil((n + 1) coverage)-th smallest of the n scores. With m scores per
    image, one for each choice of members, all scores of one image share its weight (hierarchical conformal
    prediction, arXiv 2306.06342). The coverage then holds for a random choice of members.

    Args:
        scores: scores of the true classes, `[m * images]`.
        images: number of images, n.
        coverage: the probability.

    Returns:
        The threshold; None if there are too few images for any, fewer than `images_needed`.
    """
    choices = len(scores) // images if images else 1
    rank = ceil(Fraction(str(coverage)) * (images + 1) * choices)
    return float(scores.kthvalue(rank).values) if rank <= len(scores) else None


def images_needed(coverage: float) -> int:
    """Return the smallest number of images that a threshold can be fitted on."""
    share = Fraction(str(coverage))
    return ceil(share / (1 - share))


def fit_prediction_sets(fit: Fit, folds: Sequence[Fold]) -> PredictionSets:
    """Fit thresholds for every coverage and number of members, and measure their sets on held-out images.

    Args:
        fit: the images that the returned thresholds are fitted on.
        folds: where to measure. The thresholds of a fold are fitted on its own images.
    """
    return PredictionSets(_fit_and_measure(_fit_lac, fit, folds), _fit_and_measure(_fit_raps, fit, folds))


def _fit_and_measure(fit_method: Callable[[Fit], Method], fit: Fit, folds: Sequence[Fold]) -> Method:
    fitted = fit_method(fit)
    pairs = [(fitted if fold.fit is fit else fit_method(fold.fit), fold) for fold in folds]
    fewest = min(method.images for method, _ in pairs)
    return replace(fitted, measured=_measure(pairs), images_when_measured=fewest)


def _fit_lac(fit: Fit) -> Lac:
    return Lac(len(fit.outputs.targets), _fit_thresholds(lac_scores, fit, largest=1.0))


def _fit_raps(fit: Fit) -> Raps:
    tuning = one_in(TUNING, fit.outputs.targets)
    penalty, free_classes = _choose_penalty(Fit(select(fit.outputs, tuning), fit.temperatures))
    others = select(fit.outputs, ~tuning)
    score = partial(raps_scores, penalty=penalty, free_classes=free_classes)
    largest = 1 + penalty * others.logits.shape[-1]
    thresholds = _fit_thresholds(score, Fit(others, fit.temperatures), largest)
    return Raps(len(others.targets), penalty, free_classes, thresholds)


def _choose_penalty(fit: Fit) -> tuple[float, int]:
    """Choose the penalty and the free classes whose sets are smallest, on average over the coverages.

    As in the paper, the free classes are as many as a set of fixed size needs for a coverage. The whole
    ensemble's answers choose.
    """
    members, images, classes = fit.outputs.logits.shape
    whole = [tuple(range(members))]
    probabilities = torch.cat([block for block, _ in _blocks(fit.outputs, fit.temperatures[members], whole)])
    targets = fit.outputs.targets
    ranks = 1 + (probabilities > _of_targets(probabilities, targets)[:, None]).sum(-1)
    needed = [conformal_threshold(ranks, images, coverage) for coverage in COVERAGES]
    choices = [
        (penalty, free_classes)
        for penalty in PENALTIES
        for free_classes in sorted({classes if rank is None else int(rank) for rank in needed})
    ]

    def mean_size(choice: tuple[float, int]) -> float:
        scores = raps_scores(probabilities, *choice)
        true = _of_targets(scores, targets)
        thresholds = [conformal_threshold(true, images, coverage) for coverage in COVERAGES]
        return sum(
            classes if threshold is None else float((scores <= threshold).sum(-1).double().mean())
            for threshold in thresholds
        )

    return min(choices, key=mean_size)


def _fit_thresholds(score: Callable[[Tensor], Tensor], fit: Fit, largest: float) -> BySize[float]:
    """Fit thresholds; where there are too few images for one, it is `largest`, which holds every class."""
    thresholds: BySize[float] = {coverage: {} for coverage in COVERAGES}
    for size, subsets in member_subsets(len(fit.outputs.logits)).items():
        blocks = _blocks(fit.outputs, fit.temperatures[size], subsets)
        true = torch.cat([_of_targets(score(probabilities), targets) for probabilities, targets in blocks])
        for coverage, by_size in thresholds.items():
            threshold = conformal_threshold(true, len(fit.outputs.targets), coverage)
            by_size[size] = largest if threshold is None else ceil(threshold * 10**DIGITS) / 10**DIGITS
    return thresholds


def _measure(fitted: Sequence[tuple[Lac | Raps, Fold]]) -> BySize[SetScores]:
    """Average the scores over all held-out images of the folds."""
    sizes = member_subsets(len(fitted[0][1].held_out.logits))
    measured: BySize[SetScores] = {coverage: {} for coverage in COVERAGES}
    for size, subsets in sizes.items():
        sums = torch.zeros(len(COVERAGES), 3, dtype=torch.float64)
        sets = 0
        for method, fold in fitted:
            for probabilities, targets in _blocks(fold.held_out, fold.fit.temperatures[size], subsets):
                scores = method.scores(probabilities)
                sets += len(targets)
                for index, coverage in enumerate(COVERAGES):
                    inside = scores <= method.thresholds[coverage][size]
                    covered = _of_targets(inside, targets)
                    sums[index] += torch.stack([covered.sum(), inside.sum(), (~inside.any(-1)).sum()])
        for coverage, means in zip(COVERAGES, (sums / sets).tolist(), strict=True):
            measured[coverage][size] = SetScores(*(round(mean, 5) for mean in means))
    return measured


def _blocks(
    outputs: Outputs, temperature: float, subsets: Sequence[tuple[int, ...]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield calibrated probabilities `[B, C]` and classes `[B]` of up to `BLOCK` images at a time.

    Without images, yield one empty block.
    """
    for mean in SubsetMeans(outputs.logits, subsets):
        for start in range(0, max(1, len(mean)), BLOCK):
            block = slice(start, start + BLOCK)
            yield (mean[block].double() / temperature).softmax(-1), outputs.targets[block]


def _of_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Choose the true class's value `[N]` from `[N, C]`."""
    return values.gather(1, targets[:, None])[:, 0]
