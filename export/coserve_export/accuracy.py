"""Measuring an exported ensemble's accuracy on labelled images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from coserve_export.ensemble import Description, Member
from coserve_export.errors import NetworkError
from coserve_export.labelled import LabelledImages, read_evaluation, run_members
from coserve_training.data.identity import name_image
from coserve_training.runs.calibrate import calibrate
from coserve_training.runs.evaluate import Outputs


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        provenance: the provenance's `accuracy` and, if every class has two images, `calibration`.
        top1: the ensemble's top-1 accuracy as a fraction.
        images: the number of images.
        notes: what to report about the data, in lines.
    """

    provenance: dict[str, object]
    top1: float
    images: int
    notes: Sequence[str]


def measure_accuracy(members: Sequence[Member], description: Description, data: Sequence[Path]) -> Measured:
    """Measure members of equal weight on the test split of files or folders.

    Raises:
        DescriptionError: the images cannot be used.
        NetworkError: a member's logits are not finite.
    """
    images = read_evaluation(data, description.labels, description.preprocessing)
    test = run_on(members, images)
    val = None if images.val is None else run_on(members, images.val)
    provenance = describe_scores(test, val, len(description.labels))
    return Measured(provenance, test.score().ensemble.top1, len(images), images.notes)


def run_on(members: Sequence[Member], images: LabelledImages) -> Outputs:
    """Run every member on labelled images.

    Raises:
        DescriptionError: an image cannot be decoded.
        NetworkError: a member's logits are not finite.
    """
    logits = torch.from_numpy(run_members(members, images))
    for member, image in (~logits.isfinite().all(-1)).nonzero().tolist():
        name = name_image(images.sources, image)
        raise NetworkError(f"member {member}: its logits are not all finite for {name}")
    return Outputs(logits, torch.from_numpy(images.targets), images.split)


def describe_scores(test: Outputs, val: Outputs | None, classes: int) -> dict[str, object]:
    """Return the provenance's `accuracy` and, if there are images to calibrate on, `calibration`.

    Args:
        test: outputs of the members on the images to score.
        val: outputs on validation images, which calibrate. Without them, the test images do, if there are two
            of every class.
        classes: number of classes.
    """
    accuracy = asdict(test.score())
    provenance: dict[str, object] = {"accuracy": accuracy}
    if val is not None or int(torch.bincount(test.targets, minlength=classes).min()) >= 2:
        calibration, subsets = calibrate(test.logits, test.targets, fit_on=val, split=test.split)
        accuracy["subsets"] = [asdict(subset) for subset in subsets]
        provenance["calibration"] = asdict(calibration)
    return provenance
