"""From the members' logits to the ensemble's answer: weighted mean, softmax, top-k, uncertainty."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mean = Literal["logits", "probabilities"]
"""What of the members is averaged."""


@dataclass(frozen=True)
class Combined:
    """An ensemble's answer to a batch.

    Attributes:
        logits: weighted mean of the members' logits, or logarithm of that of their probabilities, `[N, C]`.
        probabilities: softmax of `logits`, `[N, C]`.
        entropy: of `probabilities`, in nats, `[N]`; 0 where sure, ln C where all classes are as likely.
        disagreement: mutual information between the answer and the choice of a member, in nats, `[N]`;
            0 where all members give the same probabilities.
    """

    logits: Floats
    probabilities: Floats
    entropy: Floats
    disagreement: Floats


def combine(
    member_logits: NDArray[np.float32], weights: NDArray[np.float64], mean: Mean = "logits"
) -> Combined:
    """Average the members that answered.

    Disagreement is H(E p) - E H(p) over the members' probabilities p (Depeweg et al., 2018: the epistemic
    part of the predictive uncertainty; the acquisition function of BALD, Houlsby et al., 2011).

    Args:
        member_logits: finite, `[S, N, C]`.
        weights: positive, `[S]`; only their proportions matter.
        mean: what to average.
    """
    logits = member_logits.astype(np.float64)
    shares = weights / weights.sum()
    logarithms = _log_softmax(logits)
    mixture = np.logaddexp.reduce(np.log(shares)[:, None, None] + logarithms, axis=0)
    combined = np.einsum("s,snc->nc", shares, logits) if mean == "logits" else mixture
    information = _entropy(mixture) - shares @ _entropy(logarithms)
    # Rounding may leave a negative of the order of 1e-16.
    return Combined(combined, softmax(combined), _entropy(_log_softmax(combined)), np.maximum(information, 0))


def softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def top_k(probabilities: Floats, k: int) -> NDArray[np.intp]:
    """Class ids of the `k` largest probabilities of one image `[C]`, largest first; ties by class id."""
    return np.argsort(-probabilities, kind="stable")[:k]


def _log_softmax(logits: Floats) -> Floats:
    """Logarithms of the probabilities along the last axis, finite also where these are 0."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _entropy(logarithms: Floats) -> Floats:
    return np.asarray(-(np.exp(logarithms) * logarithms).sum(axis=-1))
