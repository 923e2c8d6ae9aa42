"""Scores on corrupted copies of the test images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

from torch import Tensor

from coserve_training.data import Progress
from coserve_training.doubt.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from coserve_training.errors import DataError
from coserve_training.runs.evaluate import (
    Evaluation,
    Outputs,
    Scores,
    member_logits,
    report_replaced,
    score_members,
)
from coserve_training.runs.folder import Run

DRAWN = ("frost",)
"""Corruptions that differ in kind from the authors', who use photographs."""


@dataclass(frozen=True)
class RobustScores:
    """Scores on some images, or their mean.

    Attributes:
        ensemble: scores of the averaged logits.
        member: scores of each member, averaged over the members.
        disagreement: fraction of images on which at least two members predict different classes.
    """

    ensemble: Scores
    member: Scores
    disagreement: float


@dataclass(frozen=True)
class CorruptionScores:
    """Scores on one corruption.

    Attributes:
        corruption: name of the corruption.
        severities: scores at severity 1 to 5.
        mean: their mean.
    """

    corruption: str
    severities: list[RobustScores]
    mean: RobustScores


@dataclass(frozen=True)
class Robustness:
    """Scores on corrupted copies of test images.

    Attributes:
        images: number of test images that were corrupted.
        seed: seed of the corruptions.
        clean: scores on the same images as they are.
        corruptions: scores on each corruption.
        mean: mean over all corruptions and severities.
        drawn: corruptions that stand for photographs that the authors use.
    """

    images: int
    seed: int
    clean: RobustScores
    corruptions: list[CorruptionScores]
    mean: RobustScores
    drawn: list[str] = field(default_factory=lambda: list(DRAWN))


def score_corrupted(
    run: Run,
    test: Outputs,
    mean: Sequence[float],
    std: Sequence[float],
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
) -> Robustness:
    """Score an ensemble on copies of test images: fifteen corruptions, each of five severities.

    Args:
        run: the ensemble.
        test: the test images and the members' outputs on them.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        limit: corrupt at most this number of images, evenly spaced.
        seed: seed of the corruptions.
        progress: called with the number of corrupted images that have been evaluated.
        report: called with a line for each image that became unreadable.

    Raises:
        RunError: if a member's logits are not finite.
        DataError: if `test` has no images.
    """
    if test.images is None:
        raise DataError("corrupted copies need the test images, not only the members' outputs")
    test = test.sample(limit)
    assert test.images is not None
    images = len(test.targets)
    steps = len(CORRUPTIONS) * len(SEVERITIES)
    corruptions = list[CorruptionScores]()
    done = 0

    def count(_: str, evaluated: int, __: int) -> None:
        if progress is not None:
            progress("evaluating corrupted images", done * images + evaluated, steps * images)

    for name in CORRUPTIONS:
        scores = list[RobustScores]()
        for severity in SEVERITIES:
            change = partial(corrupt, name=name, severity=severity, seed=seed)
            logits = member_logits(run.members, test.images, mean, std, count, change=change)
            scores.append(_score(logits, test.targets))
            done += 1
        corruptions.append(CorruptionScores(name, scores, average(scores)))
    report_replaced(test.images, report)
    return Robustness(
        images=images,
        seed=seed,
        clean=_score(test.logits, test.targets),
        corruptions=corruptions,
        mean=average([one.mean for one in corruptions]),
    )


def average(scores: Sequence[RobustScores]) -> RobustScores:
    """Return the mean of each score."""
    return RobustScores(
        ensemble=_average([one.ensemble for one in scores]),
        member=_average([one.member for one in scores]),
        disagreement=_mean([one.disagreement for one in scores]),
    )


def _score(logits: Tensor, targets: Tensor) -> RobustScores:
    evaluation: Evaluation = score_members(logits, targets)
    return RobustScores(evaluation.ensemble, _average(evaluation.members), evaluation.disagreement)


def _average(scores: Sequence[Scores]) -> Scores:
    return Scores(*(_mean([getattr(one, name.name) for one in scores]) for name in fields(Scores)))


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
