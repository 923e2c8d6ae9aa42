"""Comparing the logits of an ONNX network with those of the network it was made from."""

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
FP32_RELATIVE_LIMIT = 1e-5
"""Allowed difference as a fraction of the largest logit: rounding errors of fp32."""
FP16_RELATIVE_LIMIT = 0.01
"""Allowed difference as a fraction of the largest logit; trained Wide ResNets stay within 0.0005."""
TOP1_AGREEMENT = 0.99


@dataclass(frozen=True)
class Parity:
    """How well two sets of logits `[N, C]` agree.

    Attributes:
        max_abs_difference: the largest absolute difference between two logits; NaN if any is not finite.
        top1_agreement: the fraction of images with the same predicted class.
        images: the number of images, N.
    """

    max_abs_difference: float
    top1_agreement: float
    images: int


def compare_logits(reference: Logits, actual: Logits) -> Parity:
    """Compare two sets of logits `[N, C]` for the same images."""
    finite = np.isfinite(reference).all() and np.isfinite(actual).all()
    difference = float(np.abs(reference - actual).max()) if finite else float("nan")
    agreement = float(np.mean(reference.argmax(axis=1) == actual.argmax(axis=1)))
    return Parity(difference, agreement, len(reference))


def difference_limit(precision: Precision, reference: Logits) -> float:
    """Return the largest difference allowed. In fp32, it is relative to the largest logit beyond 10."""
    largest = float(np.abs(reference).max())
    if precision == "fp32":
        return max(FP32_LIMIT, FP32_RELATIVE_LIMIT * largest)
    return FP16_RELATIVE_LIMIT * largest


def require_parity(
    parity: Parity, subject: str, limit: float, reference: str = "the trained network's"
) -> None:
    """Raise ParityError unless two sets of logits agree.

    One image in a hundred, and always at least one, may change class: logits closer than the limit are a tie.

    Args:
        parity: the comparison.
        subject: names the network that was checked, for the message.
        limit: the largest difference allowed.
        reference: names the logits it was compared with, for the message.
    """
    difference = parity.max_abs_difference
    if np.isnan(difference):
        raise ParityError(subject, difference, limit, "its logits are not all finite")
    if not difference <= limit:
        reason = f"its logits differ by {difference:.2g} from {reference}, more than {limit:.2g}"
        raise ParityError(subject, difference, limit, reason)
    changed = round((1 - parity.top1_agreement) * parity.images)
    if changed > max(1, (1 - TOP1_AGREEMENT) * parity.images):
        reason = f"{changed} of {parity.images} images change class compared with {reference}"
        raise ParityError(subject, difference, limit, reason)


def run_in_batches(forward: Callable[[Images], Logits], images: Images) -> Logits:
    """Run the first image `[1, 3, H, W]` alone and the rest in batches, which reveals a fixed batch size."""
    bounds = [0, *range(1, len(images), BATCH_SIZE), len(images)]
    return np.concatenate([forward(images[start:end]) for start, end in pairwise(bounds)])


def weighted_mean(logits: Sequence[Logits], weights: Sequence[float] | None = None) -> Logits:
    """Average the members' logits `[N, C]` in float64, as a float32 reference for the mean graph."""
    mean: Logits = np.average(np.asarray(logits, np.float64), axis=0, weights=weights).astype(np.float32)
    return mean
