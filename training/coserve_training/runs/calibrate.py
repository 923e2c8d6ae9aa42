"""Temperatures that make an ensemble's probabilities honest, for every number of members that may answer."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb, sqrt
from pathlib import Path

import torch
from torch import Tensor

from coserve_training.data import Progress
from coserve_training.errors import DataError
from coserve_training.runs.evaluate import Evaluation, held_out_logits, score, score_members
from coserve_training.runs.folder import Checkpoint, write_atomically
from coserve_training.runs.records import calibration_file, weights_digest

TEMPERATURES = (0.1, 10.0)
"""The range searched: logits without a single error would ask for 0."""
BISECTIONS = 30
ALL_SUBSETS = 8
"""Up to so many members every subset is scored (255); of S more, S subsets of each size."""


@dataclass(frozen=True)
class Subset:
    """Scores of the averaged logits of some members, as they are and divided by their size's temperature."""

    members: tuple[int, ...]
    top1: float
    nll: float
    ece: float
    calibrated_nll: float
    calibrated_ece: float


@dataclass(frozen=True)
class Calibration:
    """Temperatures by number of members, and what they do to the whole ensemble's scores.

    Calibrated scores, here and in `Subset`, are of images that their temperature was not fitted on: each half
    of the images is scored with the temperature of the other half. `temperatures` are fitted on both halves.
    """

    temperatures: dict[int, float]
    images: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    @property
    def bounded(self) -> list[int]:
        """Numbers of members whose temperature is an end of the range searched, not an optimum."""
        return [size for size, temperature in self.temperatures.items() if temperature in TEMPERATURES]


def fit_temperature(logits: Iterable[Tensor], targets: Tensor) -> float:
    """The T that minimises the mean negative log-likelihood of softmax(logits / T) (arXiv 1706.04599, 4.2).

    It is convex in 1 / T, so its slope changes sign once at most, and halving the range of log T finds where.

    Args:
        logits: one or more sets, each `[N, C]`, read anew for every step.
        targets: classes `[N]`, of every set.

    Returns:
        The temperature, 4 digits; an end of `TEMPERATURES` where the optimum lies beyond.
    """
    low, high = TEMPERATURES
    for _ in range(BISECTIONS):
        middle = sqrt(low * high)
        if sum(_slope(some, targets, middle) for some in logits) > 0:  # a larger 1 / T is worse
            low = middle
        else:
            high = middle
    return round(sqrt(low * high), 4)


def member_subsets(members: int) -> dict[int, list[tuple[int, ...]]]:
    """Subsets of members by their size: all of them for `ALL_SUBSETS` members, for more a fixed choice."""
    return {size: _subsets(members, size) for size in range(1, members + 1)}


def halves(targets: Tensor) -> Tensor:
    """Which images `[N]` are in the first half: of each class every other one, in the order read."""
    first = torch.zeros(len(targets), dtype=torch.bool)
    for label in set(targets.tolist()):
        first[(targets == label).nonzero()[::2, 0]] = True
    return first


def calibrate(
    logits: Tensor, targets: Tensor, progress: Progress | None = None
) -> tuple[Calibration, list[Subset]]:
    """Fit a temperature for every number of members, and score every subset of members with and without.

    The temperature of k members minimises the mean negative log-likelihood over the subsets of k.

    Args:
        logits: of the members, `[S, N, C]`.
        targets: classes `[N]`, at least two images of each.
        progress: told how many sizes are done.
    """
    sizes = member_subsets(len(logits))
    first = halves(targets)
    temperatures, scored = {}, []
    for size, subsets in sizes.items():
        means = _Means(logits, subsets)
        temperatures[size] = fit_temperature(means, targets)
        divisors = torch.empty(len(targets), 1)
        for half in (first, ~first):
            divisors[~half] = fit_temperature(_Means(logits[:, half], subsets), targets[half])
        for subset, mean in zip(subsets, means, strict=True):
            before, after = score(mean, targets), score(mean / divisors, targets)
            figures = [before.top1, before.nll, before.ece, after.nll, after.ece]
            scored.append(Subset(subset, *(round(figure, 5) for figure in figures)))
        if progress is not None:
            progress("calibrating", size, len(sizes))
    whole = scored[-1]
    return Calibration(
        temperatures=temperatures,
        images=len(targets),
        nll_before=whole.nll,
        nll_after=whole.calibrated_nll,
        ece_before=whole.ece,
        ece_after=whole.calibrated_ece,
    ), scored


def calibrate_run(
    folder: Path,
    data: Sequence[Path],
    checkpoint: Checkpoint = "last",
    progress: Progress | None = None,
) -> tuple[Evaluation, Calibration, list[Subset]]:
    """Evaluate a run on the test split of a data set, calibrate it, and record both where export finds them.

    Raises:
        RunError: when the folder is not a run, cannot be written, or its members give no finite logits.
        DataError: when the images cannot be used, or a class has fewer than two.
    """
    run, logits, targets = held_out_logits(folder, data, checkpoint, progress)
    counts = torch.bincount(targets, minlength=len(run.labels)).tolist()
    for label, count in zip(run.labels, counts, strict=True):
        if count < 2:
            raise DataError(
                f"calibrating needs two test images or more of every class; {label} has {count or 'none'}"
            )
    evaluation = score_members(logits, targets)
    calibration, subsets = calibrate(logits, targets, progress)
    content = {
        "weights": weights_digest(run.members),
        "accuracy": asdict(evaluation) | {"subsets": [asdict(subset) for subset in subsets]},
        "calibration": asdict(calibration),
    }
    write_atomically(calibration_file(folder, checkpoint), (json.dumps(content, indent=2) + "\n").encode())
    return evaluation, calibration, subsets


def _subsets(members: int, size: int) -> list[tuple[int, ...]]:
    if members <= ALL_SUBSETS or comb(members, size) <= members:
        return list(combinations(range(members), size))
    generator, chosen = random.Random(size), set[tuple[int, ...]]()  # noqa: S311
    while len(chosen) < members:
        chosen.add(tuple(sorted(generator.sample(range(members), size))))
    return sorted(chosen)


class _Means(Iterable[Tensor]):
    """The averaged logits `[N, C]` of each subset, made when asked for: all at once may not fit in memory."""

    def __init__(self, logits: Tensor, subsets: Sequence[tuple[int, ...]]) -> None:
        self.logits, self.subsets = logits, subsets

    def __iter__(self) -> Iterator[Tensor]:
        return (self.logits[list(subset)].mean(0) for subset in self.subsets)


def _slope(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Derivative of the mean negative log-likelihood by 1 / T: expected less actual logit."""
    expected = (logits * (logits / temperature).softmax(-1)).sum(-1)
    return float((expected - logits.gather(1, targets[:, None])[:, 0]).mean(dtype=torch.float64))
