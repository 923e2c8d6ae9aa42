"""Comparing logits: an ONNX network against the network it came from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from coserve_export.errors import ParityError

Logits = npt.NDArray[np.float32]
Images = npt.NDArray[np.float32]
Precision = Literal["fp32", "fp16"]

BATCH_SIZE = 32
FP32_LIMIT = 1e-4
FP16_RELATIVE_LIMIT = 0.01
"""Of the largest logit; trained Wide ResNets come within 0.0005."""
TOP1_AGREEMENT = 0.99


@dataclass(frozen=True)
class Parity:
    """How far two sets of logits `[N, C]` agree.

    Attributes:
        max_abs_difference: the largest absolute difference of two logits; NaN where any is not finite.
        top1_agreement: the fraction of images whose largest logit is of the same class.
        images: N.
    """

    max_abs_difference: float
    top1_agreement: float
    images: int


def compare(reference: Logits, actual: Logits) -> Parity:
    """Compare logits `[N, C]` of the same images."""
    finite = np.isfinite(reference).all() and np.isfinite(actual).all()
    difference = float(np.abs(reference - actual).max()) if finite else float("nan")
    agreement = float(np.mean(reference.argmax(axis=1) == actual.argmax(axis=1)))
    return Parity(difference, agreement, len(reference))


def difference_limit(precision: Precision, reference: Logits) -> float:
    """The largest difference allowed: absolute for fp32, relative to the largest logit for fp16."""
    return FP32_LIMIT if precision == "fp32" else FP16_RELATIVE_LIMIT * float(np.abs(reference).max())


def require(parity: Parity, subject: str, limit: float, reference: str = "the trained network's") -> None:
    """Raise ParityError unless the logits agree; `reference` says in the message whose the others are.

    One image in a hundred (at least one) may change its class: logits closer than the limit are a tie.
    """
    difference = parity.max_abs_difference
    if np.isnan(difference):
        raise ParityError(subject, difference, limit, "its logits are not all finite")
    if not difference <= limit:
        reason = f"its logits differ by {difference:.2g} from {reference}, more than {limit:.2g}"
        raise ParityError(subject, difference, limit, reason)
    changed = round((1 - parity.top1_agreement) * parity.images)
    if changed > max(1, (1 - TOP1_AGREEMENT) * parity.images):
        reason = f"{changed} of {parity.images} images change their class against {reference}"
        raise ParityError(subject, difference, limit, reason)


def in_batches(forward: Callable[[Images], Logits], images: Images) -> Logits:
    """Run images `[N, 3, H, W]` first alone, then several at a time, so that a frozen batch shows."""
    starts = [0, *range(1, len(images), BATCH_SIZE), len(images)]
    return np.concatenate([forward(images[a:b]) for a, b in pairwise(starts)])


def weighted_mean(logits: Sequence[Logits], weights: Sequence[float] | None = None) -> Logits:
    """The reference for the ensemble's mean, in float64: members' logits `[N, C]` to `[N, C]` float32."""
    mean: Logits = np.average(np.asarray(logits, np.float64), axis=0, weights=weights).astype(np.float32)
    return mean
