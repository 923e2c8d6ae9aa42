"""From the members' logits to the ensemble's answer: weighted mean, softmax, top-k, uncertainty."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coserve_server.ensembles.calibration import UNCALIBRATED, Calibration

Floats = NDArray[np.float64]

TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Combined:
    """An ensemble's answer to a batch.

    Attributes:
        logits: weighted mean of the members' logits, `[N, C]`.
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
    calibration: Calibration = UNCALIBRATED,
) -> Combined:
    """Average the members that answered.

    Disagreement is H(E p) - E H(p) over the members' probabilities p (Depeweg et al., 2018: the epistemic
    part of the predictive uncertainty; the acquisition function of BALD, Houlsby et al., 2011).

    Args:
        member_logits: finite, `[S, N, C]`.
        weights: positive, `[S]`; only their proportions matter.
        calibration: temperatures for the mean of each number of members.
    """
    logits = member_logits.astype(np.float64)
    # Of the largest first: a sum may be more than there are numbers for.
    shares = weights / weights.max()
    shares /= shares.sum()
    members, logarithms = _softmax(logits / calibration.temperature(1))
    combined = np.einsum("s,snc->nc", shares, logits)
    probabilities, own_logarithms = _softmax(combined / calibration.temperature(len(logits)))
    mixture = np.einsum("s,snc->nc", shares, members)
    # What is not possible has no share in an entropy, and no logarithm.
    information = _entropy(mixture, np.log(np.maximum(mixture, TINY))) - shares @ _entropy(
        members, logarithms
    )
    return Combined(
        logits=combined,
        probabilities=probabilities,
        entropy=_entropy(probabilities, own_logarithms),
        # Rounding may leave a negative of the order of 1e-16.
        disagreement=np.maximum(information, 0),
        member_probabilities=members,
    )


def top_k(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Class ids of the `k` largest scores of one image `[C]`, largest first; ties by class id."""
    return np.argsort(-scores, kind="stable")[:k]


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """Probabilities along the last axis, and their logarithms, finite also where these are 0."""
    # The ufuncs' own reductions: of a few numbers, the methods' detour takes most of the time.
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    total = np.add.reduce(exponentials, axis=-1, keepdims=True)
    return exponentials / total, shifted - np.log(total)


def _entropy(probabilities: Floats, logarithms: Floats) -> Floats:
    return np.asarray(-np.add.reduce(probabilities * logarithms, axis=-1))
