"""Calibration of an ensemble on labelled images: temperatures, prediction sets, early stopping."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from coserve_training.data import Progress
from coserve_training.errors import DataError
from coserve_training.runs.early_stopping import EarlyStopping, fit_early_stopping
from coserve_training.runs.evaluate import Evaluation, Outputs, held_out_logits, score
from coserve_training.runs.folder import Checkpoint, Run, write_atomically
from coserve_training.runs.prediction_sets import PredictionSets, fit_prediction_sets
from coserve_training.runs.records import calibration_file, weights_digest
from coserve_training.runs.subsets import Fit, Fold, SubsetMeans, member_subsets, one_in, select

TEMPERATURES = (0.1, 10.0)
"""The search range. It is bounded because logits without any error have their optimum at 0."""
BISECTIONS = 30


@dataclass(frozen=True)
class Subset:
    """Scores of some members' averaged logits, before and after division by their number's temperature.

    Attributes:
        members: indices of the members.
        top1: top-1 accuracy, as a fraction.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error, as a fraction.
        calibrated_nll: negative log-likelihood after calibration.
        calibrated_ece: calibration error after calibration.
    """

    members: tuple[int, ...]
    top1: float
    nll: float
    ece: float
    calibrated_nll: float
    calibrated_ece: float


@dataclass(frozen=True)
class Calibration:
    """Temperatures by number of members, the ensemble's scores before and after, sets, and early stopping.

    Scores after calibration, here and in `Subset`, come from images that nothing was fitted on. If there is
    no validation split to fit on, each half of the images is scored with what was fitted on the other half.

    Attributes:
        temperatures: temperatures by number of members, fitted on all images of `split`.
        images: number of images in `split`.
        nll_before: mean negative log-likelihood of the whole ensemble, in nats.
        nll_after: the same after calibration.
        ece_before: expected calibration error of the whole ensemble, as a fraction.
        ece_after: the same after calibration.
        prediction_sets: thresholds of prediction sets, and the sets' scores.
        early_stopping: a confidence to stop at for each loss of accuracy; none for one member.
        split: which images everything was fitted on, as in `Evaluation`.
    """

    temperatures: dict[int, float]
    images: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    prediction_sets: PredictionSets
    early_stopping: list[EarlyStopping]
    split: str | None = None

    @property
    def bounded(self) -> list[int]:
        """Numbers of members whose temperature is an end of the search range instead of an optimum."""
        return [size for size, temperature in self.temperatures.items() if temperature in TEMPERATURES]


def fit_temperature(logits: Iterable[Tensor], targets: Tensor) -> float:
    """Fit the T that minimises the negative log-likelihood of softmax(logits / T) (arXiv 1706.04599, 4.2).

    The likelihood is convex in 1 / T. Its slope changes sign at most once, and bisecting log T finds where.

    Args:
        logits: one or more sets of logits `[N, C]`, iterated anew in every step.
        targets: classes `[N]`, the same for every set.

    Returns:
        The temperature with 4 decimals; an end of `TEMPERATURES` if the optimum lies beyond it.
    """
    low, high = TEMPERATURES
    for _ in range(BISECTIONS):
        middle = sqrt(low * high)
        if sum(_slope(some, targets, middle) for some in logits) > 0:  # a larger 1 / T is worse
            low = middle
        else:
            high = middle
    return round(sqrt(low * high), 4)


def calibrate(
    logits: Tensor,
    targets: Tensor,
    progress: Progress | None = None,
    fit_on: Outputs | None = None,
    split: str | None = None,
) -> tuple[Calibration, list[Subset]]:
    """Fit temperatures, prediction sets and early stopping, and score every subset before and after.

    The temperature of k members minimises the mean negative log-likelihood over all subsets of k members.

    Args:
        logits: logits of the members, `[S, N, C]`.
        targets: classes `[N]`; with at least two images of each, unless there is `fit_on`.
        progress: called after every size of subsets, and after each of the other two.
        fit_on: other images to fit on; by default, these images, measured on halves.
        split: name of the split that these images are of.
    """
    sizes = member_subsets(len(logits))
    test = Outputs(logits, targets, split)
    first = one_in(2, targets)
    outputs = [test, select(test, first), select(test, ~first)] if fit_on is None else [fit_on]
    temperatures: list[dict[int, float]] = [{} for _ in outputs]
    scored = []
    for size, subsets in sizes.items():
        fitted = [fit_temperature(SubsetMeans(some.logits, subsets), some.targets) for some in outputs]
        for by_size, temperature in zip(temperatures, fitted, strict=True):
            by_size[size] = temperature
        divisors = torch.full((len(targets), 1), fitted[0])
        if fit_on is None:
            divisors[first] = fitted[2]
            divisors[~first] = fitted[1]
        for subset, mean in zip(subsets, SubsetMeans(logits, subsets), strict=True):
            before = score(mean, targets)
            after = score(mean / divisors, targets)
            figures = [before.top1, before.nll, before.ece, after.nll, after.ece]
            scored.append(Subset(subset, *(round(figure, 5) for figure in figures)))
        if progress is not None:
            progress("calibrating", size, len(sizes) + 2)
    fits = [Fit(some, by_size) for some, by_size in zip(outputs, temperatures, strict=True)]
    if fit_on is None:
        folds = [Fold(fits[1], outputs[2]), Fold(fits[2], outputs[1])]
    else:
        folds = [Fold(fits[0], test)]
    prediction_sets = fit_prediction_sets(fits[0], folds)
    if progress is not None:
        progress("calibrating", len(sizes) + 1, len(sizes) + 2)
    early_stopping = fit_early_stopping(fits[0], folds)
    if progress is not None:
        progress("calibrating", len(sizes) + 2, len(sizes) + 2)
    whole = scored[-1]
    return Calibration(
        temperatures=temperatures[0],
        images=len(outputs[0].targets),
        nll_before=whole.nll,
        nll_after=whole.calibrated_nll,
        ece_before=whole.ece,
        ece_after=whole.calibrated_ece,
        prediction_sets=prediction_sets,
        early_stopping=early_stopping,
        split=outputs[0].split,
    ), scored


def calibrate_run(
    folder: Path | str,
    data: Sequence[Path | str] | Path | str | None = None,
    checkpoint: Checkpoint = "last",
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Evaluation, Calibration, list[Subset]]:
    """Evaluate a run on the test split of a data set and calibrate it, and record both for export.

    Temperatures are fitted on the validation split if there is one beside the test split.

    Args:
        folder: the run folder.
        data: one or several paths of a data set; by default the run's own data.
        checkpoint: "last", or "best" for the best epoch (docs/guides/training/data.md, Splits).
        progress: called with the progress of decoding, evaluating and calibrating.
        report: called with a line for each thing to note about the data.

    Returns:
        Scores of the ensemble and its members, the calibration, and scores of every subset of members.

    Raises:
        RunError: if the folder is not a run folder or cannot be written, or a member's logits are not finite.
        DataError: if the images cannot be used, or a class has fewer than two of them.
    """
    run, test, val = held_out_logits(Path(folder), data, checkpoint, progress, report, calibrating=True)
    return calibrate_outputs(Path(folder), run, test, val, checkpoint, progress)


def calibrate_outputs(
    folder: Path,
    run: Run,
    test: Outputs,
    val: Outputs | None,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> tuple[Evaluation, Calibration, list[Subset]]:
    """Score a run by its members' outputs, calibrate it, on validation images if there are any; record both.

    Raises:
        RunError: if the record cannot be written.
        DataError: if a class has fewer than two test images, and there are no validation images.
    """
    counts = torch.bincount(test.targets, minlength=len(run.labels)).tolist()
    for label, count in zip(run.labels, counts, strict=True):
        if count < 2 and val is None:
            raise DataError(
                f"calibrating needs at least two test images of every class; {label} has {count or 'none'}"
            )
    evaluation = test.score()
    calibration, subsets = calibrate(test.logits, test.targets, progress, val, test.split)
    content = {
        "weights": weights_digest(run.members),
        "accuracy": asdict(evaluation) | {"subsets": [asdict(subset) for subset in subsets]},
        "calibration": asdict(calibration),
    }
    write_atomically(calibration_file(folder, checkpoint), (json.dumps(content, indent=2) + "\n").encode())
    return evaluation, calibration, subsets


def _slope(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the derivative of the mean negative log-likelihood by 1 / T: expected minus actual logit."""
    expected = (logits * (logits / temperature).softmax(-1)).sum(-1)
    return float((expected - logits.gather(1, targets[:, None])[:, 0]).mean(dtype=torch.float64))
