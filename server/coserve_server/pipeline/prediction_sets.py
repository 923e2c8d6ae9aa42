"""Prediction sets: for each image, as many of the most probable classes as a given coverage needs.

They are split conformal (Angelopoulos and Bates, arXiv 2107.07511): the thresholds were fitted on labelled
images that the networks were not trained on, and the coverage holds on average over images like those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coserve_server.ensembles.calibration import RapsCalibration, SetCalibration
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError
from coserve_server.pipeline.combine import Combined, Floats

Method = Literal["lac", "raps"]
Sizes = NDArray[np.intp]


@dataclass(frozen=True)
class PredictionSets:
    """The prediction sets of a batch.

    Attributes:
        coverage: fraction of images whose set holds the true class.
        threshold: the method's, for the number of members that answered; None if none was fitted for it, or
            if the images were answered by different numbers of members.
        sizes: number of most probable classes in each image's set; None without a threshold for its members.
    """

    coverage: float
    method: Method
    threshold: float | None
    sizes: Sequence[int | None]


@dataclass(frozen=True)
class SetRule:
    """Makes prediction sets of one coverage by one method."""

    coverage: float
    method: Method
    calibration: SetCalibration

    def apply(self, combined: Combined) -> PredictionSets:
        """Make the prediction sets of an answer, with the threshold for each image's number of members."""
        thresholds = self.calibration.thresholds[self.coverage]
        sizes: list[int | None] = [None] * len(combined.counts)
        for members in set(combined.counts):
            if members in thresholds:
                rows = [row for row, count in enumerate(combined.counts) if count == members]
                counted = self._count(combined.probabilities[rows], thresholds[members]).tolist()
                for row, size in zip(rows, counted, strict=True):
                    sizes[row] = size
        used = {thresholds.get(members) for members in combined.counts}
        return PredictionSets(self.coverage, self.method, used.pop() if len(used) == 1 else None, sizes)

    def _count(self, probabilities: Floats, threshold: float) -> Sizes:
        if isinstance(self.calibration, RapsCalibration):
            return raps_sizes(
                probabilities, threshold, self.calibration.penalty, self.calibration.free_classes
            )
        return lac_sizes(probabilities, threshold)


def find_rule(ensemble: Ensemble, coverage: float, method: Method) -> SetRule:
    """Return the rule for the prediction sets that a request asks for.

    Raises:
        InvalidParametersError: the ensemble with all its members is not calibrated for them.
    """
    members = len(ensemble.members)
    sets = ensemble.calibration.prediction_sets
    calibrations: dict[Method, SetCalibration | None] = {"lac": sets.lac, "raps": sets.raps}
    coverages = {name: one.coverages(members) for name, one in calibrations.items() if one is not None}
    methods = [name for name, calibrated in coverages.items() if calibrated]
    calibration = calibrations[method]
    if not methods:
        raise InvalidParametersError(
            f"{ensemble.name} has no thresholds for prediction sets; to calibrate it, run coserve evaluate "
            "--calibrate on its training run and export the run again"
        )
    if calibration is None or method not in methods:
        raise InvalidParametersError(
            f"set_method is {method!r}; {ensemble.name} is calibrated for {', '.join(methods)} alone"
        )
    if coverage not in coverages[method]:
        raise InvalidParametersError(
            f"coverage is {coverage}; {ensemble.name} is calibrated for "
            f"{', '.join(map(str, coverages[method]))}"
        )
    return SetRule(coverage, method, calibration)


def lac_sizes(probabilities: Floats, threshold: float) -> Sizes:
    """Return how many classes of each image have 1 - p <= threshold (LAC, arXiv 1609.00451), `[N]`.

    A set may be empty: no class is probable enough.

    Args:
        probabilities: `[N, C]`.
    """
    return np.asarray(np.count_nonzero(1 - probabilities <= threshold, axis=-1))


def raps_sizes(probabilities: Floats, threshold: float, penalty: float, free_classes: int) -> Sizes:
    """Return how many classes RAPS takes of each image, not randomised: its u is 0 (arXiv 2009.14193), `[N]`.

    The score of a class is the sum of the probabilities of all likelier classes, plus `penalty` for each rank
    beyond `free_classes`. The set holds the classes whose score is at most the threshold. The first has the
    score 0.

    Args:
        probabilities: `[N, C]`.
        free_classes: at least 1.
    """
    scores = np.zeros_like(probabilities)
    np.cumsum(-np.sort(-probabilities, axis=-1)[:, :-1], axis=-1, out=scores[:, 1:])
    # Rounding may take a sum beyond 1, and so beyond a threshold that is meant for every class.
    np.minimum(scores, 1, out=scores)
    scores += penalty * np.maximum(0, np.arange(1, probabilities.shape[-1] + 1) - free_classes)
    return np.asarray(np.count_nonzero(scores <= threshold, axis=-1))
