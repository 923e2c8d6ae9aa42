"""When an image needs no further member: the rule, and how confident the members so far are."""

import logging
from dataclasses import dataclass

import numpy as np

from coserve_server.ensembles.calibration import EarlyStopping
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError
from coserve_server.pipeline.combine import Floats
from coserve_server.settings import EarlyStop, Settings

logger = logging.getLogger(__name__)

UNCALIBRATED = (
    "is not calibrated for stopping early; run coserve evaluate --calibrate on its training run and export "
    "the run again, or set the server's early_stop_confidence"
)


@dataclass(frozen=True)
class StoppingRule:
    """Stop when the likeliest class's calibrated probability exceeds a confidence.

    Attributes:
        confidence: below 1.
        loss: top-1 accuracy that the confidence was calibrated to lose at most; None without calibration.
        top1: top-1 accuracy measured with this rule; None if unknown.
        minimum: number of members that must answer in any case.
        always: whether it also holds while the server is idle.
    """

    confidence: float
    loss: float | None
    top1: float | None
    minimum: int
    always: bool


class StoppingRules:
    """Finds the rule for a request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uncalibrated: set[tuple[str, str]] = set()
        """Name and version of the ensembles that the log has named."""

    def find(self, ensemble: Ensemble, wanted: EarlyStop | None) -> StoppingRule | None:
        """Return the rule for a request; None if all members have to answer.

        Args:
            wanted: what the request asks for; None for the setting.

        Raises:
            InvalidParametersError: the request asks for it, but no confidence is known.
        """
        mode = wanted or self._settings.early_stop
        size = len(ensemble.members)
        minimum = min(self._settings.min_members or 1, size)
        if mode == "off" or minimum == size:
            return None
        always = mode == "always"
        row = _find_calibrated(ensemble, self._settings.early_stop_loss)
        if row is not None:
            if row.confidence == 1:
                return None
            # The accuracy was measured without a minimum.
            return StoppingRule(row.confidence, row.loss, row.top1 if minimum == 1 else None, minimum, always)
        if self._settings.early_stop_confidence is not None:
            return StoppingRule(self._settings.early_stop_confidence, None, None, minimum, always)
        if wanted is not None:
            raise InvalidParametersError(f"early_stop is {wanted!r}; {ensemble.name} {UNCALIBRATED}")
        self._warn(ensemble)
        return None

    def _warn(self, ensemble: Ensemble) -> None:
        """Log once that an ensemble does not do what the setting says."""
        key = (ensemble.name, ensemble.version)
        if key not in self._uncalibrated:
            self._uncalibrated.add(key)
            logger.warning("all members of %s answer every request: it %s", ensemble.name, UNCALIBRATED)


def confidences(totals: Floats, divisors: Floats) -> Floats:
    """Return the probability of each image's likeliest class, `[N]`.

    Args:
        totals: weighted sums of logits, `[N, C]`.
        divisors: sum of the weights, times the temperature, `[N]`.
    """
    scaled = totals / divisors[:, np.newaxis]
    scaled -= np.maximum.reduce(scaled, axis=-1, keepdims=True)
    # The largest exponential is 1.
    return np.asarray(1 / np.add.reduce(np.exp(scaled), axis=-1))


def _find_calibrated(ensemble: Ensemble, loss: float) -> EarlyStopping | None:
    """Return the calibrated confidence with the largest loss up to this one."""
    rows = [row for row in ensemble.calibration.early_stopping if row.loss <= loss]
    return max(rows, key=lambda row: row.loss, default=None)
