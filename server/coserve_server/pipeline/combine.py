"""Combines the members' logits into an answer: weighted mean, softmax, top-k, uncertainty."""

from collections.abc import Sequence
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
        probabilities: softmax of `logits` divided by the temperature for this number of members, `[N, C]`.
        entropy: entropy of `probabilities` in nats, `[N]`; 0 if one class is certain, ln C if all C classes
            are equally likely.
        disagreement: mutual information between the class and the choice of a member, in nats, `[N]`; 0 if
            all members give the same probabilities.
        member_probabilities: softmax of each member's logits divided by the temperature for one member,
            `[S, N, C]`; NaN for images that the member did not answer.
        counts: number of members averaged for each image, N of them.
    """

    logits: Floats
    probabilities: Floats
    entropy: Floats
    disagreement: Floats
    member_probabilities: Floats
    counts: Sequence[int]


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
        calibration: a temperature for each number of members that are averaged.
    """
    logits = member_logits.astype(np.float64)
    count = len(logits)
    # Scale by the largest weight first, so that the sum cannot overflow.
    shares = weights / np.maximum.reduce(weights)
    shares /= np.add.reduce(shares)
    combined = _mean(shares, logits)
    # The members and their mean together: for tiny arrays, a call of NumPy costs more than its arithmetic.
    scaled = np.empty((count + 1, *combined.shape))
    np.divide(logits, calibration.temperature(1), out=scaled[:count])
    np.divide(combined, calibration.temperature(count), out=scaled[count])
    probabilities, logarithms = _softmax(scaled)
    entropies = _entropy(probabilities, logarithms)
    members = probabilities[:count]
    return Combined(
        logits=combined,
        probabilities=probabilities[count],
        entropy=entropies[count],
        disagreement=_information(shares, members, entropies[:count]),
        member_probabilities=members,
        counts=[count] * len(combined),
    )


def combine_apart(
    member_logits: NDArray[np.float32],
    answered: Sequence[tuple[int, ...]],
    weights: NDArray[np.float64],
    calibration: Calibration = UNCALIBRATED,
) -> Combined:
    """Average the members that answered, for each image its own.

    Args:
        member_logits: `[S, N, C]`, finite where a member answered.
        answered: for each image, indices of the members that answered it, ascending and at least one.
        weights: positive, `[S]`; only their proportions matter.
        calibration: a temperature for each number of members that are averaged.
    """
    images: dict[tuple[int, ...], list[int]] = {}
    for index, members in enumerate(answered):
        images.setdefault(members, []).append(index)
    shape = member_logits.shape[1:]
    logits = np.empty(shape)
    probabilities = np.empty(shape)
    entropy = np.empty(shape[0])
    disagreement = np.empty(shape[0])
    member_probabilities = np.full(member_logits.shape, np.nan)
    for members, rows in images.items():
        part = combine(member_logits[np.ix_(members, rows)], weights[list(members)], calibration)
        logits[rows] = part.logits
        probabilities[rows] = part.probabilities
        entropy[rows] = part.entropy
        disagreement[rows] = part.disagreement
        member_probabilities[np.ix_(members, rows)] = part.member_probabilities
    counts = [len(members) for members in answered]
    return Combined(logits, probabilities, entropy, disagreement, member_probabilities, counts)


def top_k(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Return the class ids of the `k` largest scores of one image `[C]`, largest first; ties by class id."""
    if k > len(scores) // 8:
        return np.argsort(-scores, kind="stable")[:k]
    # Finding the few that can be among them takes a tenth of the time of sorting all.
    likely = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return np.asarray(likely[np.argsort(-scores[likely], kind="stable")[:k]])


def _mean(shares: Floats, values: Floats) -> Floats:
    """Return the weighted mean of `[S, N, C]` over the members, `[N, C]`."""
    return np.asarray((shares @ values.reshape(len(values), -1)).reshape(values.shape[1:]))


def _information(shares: Floats, members: Floats, entropies: Floats) -> Floats:
    """Return H(E p) - E H(p) of probabilities `[S, N, C]` and their entropies `[S, N]`, `[N]`."""
    # Exactly 0: the difference would be one of rounding.
    if len(members) == 1:
        return np.zeros(members.shape[1])
    mixture = _mean(shares, members)
    # Clamp before taking logs: 0 * log 0 counts as 0.
    mixture_entropy = _entropy(mixture, np.log(np.maximum(mixture, TINY)))
    # Rounding may leave a negative value of the order of 1e-16.
    return np.maximum(mixture_entropy - shares @ entropies, 0)


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """Return the probabilities along the last axis, and their logarithms, finite even for probability 0."""
    # For tiny arrays, ndarray.max() costs more in dispatch than in arithmetic; ufuncs' reductions do not.
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    total = np.add.reduce(exponentials, axis=-1, keepdims=True)
    return exponentials / total, shifted - np.log(total)


def _entropy(probabilities: Floats, logarithms: Floats) -> Floats:
    # A subtraction, since the negative of a certain answer's 0 would be -0.
    return np.asarray(0 - np.add.reduce(probabilities * logarithms, axis=-1))
