"""The rule for a member's outputs: logits. They are judged by their values, not by the network's graph.

Logits `[N, C]` are finite numbers, one per image and class, whose softmax gives probabilities. They depend on
the image, on nothing else, and tell classes apart. Adding a number to all logits of an image changes nothing,
so log-probabilities (log-softmax) are logits. Probabilities are not: softmax would flatten them.
"""

from collections.abc import Callable

import numpy as np

from coserve_export.errors import NetworkError, ParityError
from coserve_export.parity import FP16_RELATIVE_LIMIT, Images, Logits
from coserve_export.samples import Samples

Run = Callable[[Images], Logits]

QUANTISED_LIMIT = 0.05
"""Allowed fraction of the largest logit; dynamic quantisation shares a scale within a batch."""
REPEAT_LIMIT = 1e-4
"""Allowed fraction of the largest logit between two runs on the same images."""
EQUAL_LIMIT = 1e-6
"""Logits that differ by less than this fraction of the largest are the same."""
SUM_LIMIT = 1e-3
"""Allowed fraction by which the sums of probabilities differ; fp16 and int8 round each of them."""
AMPLIFICATION = 1000
"""Factor that brightens images far beyond any that are served, to tell small logits from bounded outputs."""
REPEATS = 2
ALONE = 3


def run_network(run: Run, samples: Samples, num_classes: int, subject: str, quantised: bool) -> Logits:
    """Run a network on images together and alone; return its logits `[N, num_classes]`.

    Args:
        run: runs the network on normalised images.
        samples: varied images, which alone reveal a batch norm in training mode.
        num_classes: the number of labels.
        subject: the network's name in error messages.
        quantised: whether the network computes in integers.

    Raises:
        NetworkError: the network cannot run the images in one batch, or does not give logits.
    """
    images = samples.images
    alone = [_run(run, image[None], num_classes, subject) for image in images[-ALONE:]]
    together = _run(run, images, num_classes, subject)
    for name, logits in zip(samples.names, together, strict=True):
        if not np.isfinite(logits).all():
            raise NetworkError(f"{subject}: its logits are not all finite for {name}")
    largest = float(np.abs(together).max())
    for _ in range(REPEATS):
        difference = float(np.abs(_run(run, images, num_classes, subject) - together).max())
        if not difference <= REPEAT_LIMIT * largest:
            raise NetworkError(
                f"{subject}: its logits for the same images differ by {difference:.2g} from run to run; "
                "export it in eval mode, where dropout and batch norm do not do so"
            )
    limit = (QUANTISED_LIMIT if quantised else FP16_RELATIVE_LIMIT) * largest
    difference = float(np.abs(together[-ALONE:] - np.concatenate(alone)).max())
    if not difference <= limit:
        reason = (
            f"its logits differ by {difference:.2g} from those of the same image in a batch, more than "
            f"{limit:.2g}; export it in eval mode, where no layer uses the rest of the batch"
        )
        raise ParityError(subject, difference, limit, reason)
    check_logits(together, lambda: run(AMPLIFICATION * images), subject)
    return together


def check_logits(logits: Logits, run_amplified: Callable[[], Logits], subject: str) -> None:
    """Raise NetworkError unless finite outputs `[N, C]` of varied images can be logits.

    Args:
        logits: the outputs.
        run_amplified: gives the outputs for far brighter images, which is done only in doubt.
        subject: the network's name in error messages.
    """
    tolerance = EQUAL_LIMIT * float(np.abs(logits).max())
    if np.ptp(logits, axis=0).max() <= tolerance:
        raise NetworkError(
            f"{subject}: gives the same logits for every image; if it needs photographs to tell them apart, "
            "give some with --samples"
        )
    if np.ptp(logits, axis=1).max() <= tolerance:
        raise NetworkError(f"{subject}: gives every class the same logit")
    kind = _recognise(logits)
    # Small logits may look like probabilities, but only probabilities stay so.
    if kind is not None and _recognise(_finite_rows(run_amplified(), logits)) is not None:
        raise NetworkError(
            f"{subject}: gives {kind}; members must give logits: export it without its last softmax, "
            "sigmoid or argmax (log-softmax may stay)"
        )


def _run(run: Run, images: Images, num_classes: int, subject: str) -> Logits:
    count = len(images)
    try:
        logits = run(images)
    except NetworkError as error:
        if count == 1:
            raise
        raise NetworkError(
            f"{error}; it does run single images, so its batch size may be fixed inside: export it with a "
            "dynamic batch size"
        ) from error
    shape = logits.shape
    if shape == (count, num_classes):
        return logits
    if len(shape) != 2 or shape[0] != count:
        raise NetworkError(
            f"{subject}: a batch of {count} gives outputs of shape {shape}, not [{count}, {num_classes}]"
        )
    raise NetworkError(f"{subject}: gives {shape[1]} classes, but there are {num_classes} labels")


def _recognise(outputs: Logits) -> str | None:
    """Name the kind of outputs that are not logits; None if they may be."""
    # Rounding in fp16 and int8 may leave the range a little.
    if len(outputs) == 0 or outputs.min() < -EQUAL_LIMIT:
        return None
    sums = outputs.sum(axis=1, dtype=np.float64)
    if np.ptp(sums) <= SUM_LIMIT * sums.max():
        return "probabilities or one-hot classes, which have the same sum for every image"
    if (outputs == np.round(outputs)).all():
        return "class indices or votes, in whole numbers"
    if outputs.max() <= 1 + SUM_LIMIT:
        return "values between 0 and 1"
    return None


def _finite_rows(outputs: Logits, like: Logits) -> Logits:
    """Return the finite rows of an amplified run, where numbers may overflow; `like` if there are none."""
    rows = outputs[np.isfinite(outputs).all(axis=1)]
    return rows if len(rows) else like
