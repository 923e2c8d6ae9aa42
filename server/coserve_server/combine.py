"""From the members' logits to the ensemble's answer: weighted mean, softmax, top-k, uncertainty."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coserve_server.calibration import UNCALIBRATED, Calibration

Floats = NDArray[np.float64]
Mean = Literal["logits", "probabilities"]
"""What of the members is averaged."""


@dataclass(frozen=True)
class Combined:
    """An ensemble's answer to a batch.

    Attributes:
        logits: weighted mean of the members' logits, or logarithm of that of their probabilities, `[N, C]`.
        probabilities: softmax of `logits` divided by the temperature of so many members, `[N, C]`.
        entropy: of `probabilities`, in nats, `[N]`; 0 where sure, ln C where all classes are as likely.
        disagreement: mutual information between the answer and the choice of a member, in nats, `[N]`;
            0 where all members give the same probabilities.
        member_probabilities: softmax of each member's logits divided by the temperature of one, `[S, N, C]`.
    """

    logits: Floats
    probabilities: Floats
    entropy: Floats
    disagreement: Floats
    member_probabilities: Floats


def combine(
    member_logits: NDArray[np.float32],
    weights: NDArray[np.float64],
    mean: Mean = "logits",
    calibration: Calibration = UNCALIBRATED,
) -> Combined:
    """Average the members that answered.

    Disagreement is H(E p) - E H(p) over the members' probabilities p (Depeweg et al., 2018: the epistemic
    part of the predictive uncertainty; the acquisition function of BALD, Houlsby et al., 2011).

    Args:
        member_logits: finite, `[S, N, C]`.
        weights: positive, `[S]`; only their proportions matter.
        mean: what to average.
        calibration: temperatures; they were fitted on averaged logits, and not used where probabilities are
            averaged.
    """
    logits = member_logits.astype(np.float64)
    shares = weights / weights.sum()
    if mean == "probabilities":
        calibration = UNCALIBRATED
    logarithms = _log_softmax(logits / calibration.temperature(1))
    mixture = np.logaddexp.reduce(np.log(shares)[:, None, None] + logarithms, axis=0)
    combined = np.einsum("s,snc->nc", shares, logits) if mean == "logits" else mixture
    information = _entropy(mixture) - shares @ _entropy(logarithms)
    calibrated = combined / calibration.temperature(len(logits))
    return Combined(
        logits=combined,
        probabilities=softmax(calibrated),
        entropy=_entropy(_log_softmax(calibrated)),
        # Rounding may leave a negative of the order of 1e-16.
        disagreement=np.maximum(information, 0),
        member_probabilities=np.exp(logarithms),
    )


def softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def top_k(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Class ids of the `k` largest scores of one image `[C]`, largest first; ties by class id."""
    return np.argsort(-scores, kind="stable")[:k]


def _log_softmax(logits: Floats) -> Floats:
    """Logarithms of the probabilities along the last axis, finite also where these are 0."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _entropy(logarithms: Floats) -> Floats:
    return np.asarray(-(np.exp(logarithms) * logarithms).sum(axis=-1))
