"""Measuring an exported ensemble's accuracy on labelled images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from coserve_export.ensemble import Description, Member
from coserve_export.labelled import read_evaluation
from coserve_export.session import Session
from coserve_training.runs.calibrate import calibrate
from coserve_training.runs.evaluate import score_members


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
    """
    images = read_evaluation(data, description.labels, description.preprocessing)
    sessions = [(Session(member.model, f"member {i}"), member) for i, member in enumerate(members)]
    batches = [
        np.stack([session.run(member.output, {member.input: batch}) for session, member in sessions])
        for batch in images.batches()
    ]
    logits = torch.from_numpy(np.concatenate(batches, axis=1))
    targets = torch.from_numpy(images.targets)
    scores = score_members(logits, targets, "test")
    accuracy = asdict(scores)
    provenance: dict[str, object] = {"accuracy": accuracy}
    if int(torch.bincount(targets, minlength=len(description.labels)).min()) >= 2:
        calibration, subsets = calibrate(logits, targets)
        accuracy["subsets"] = [asdict(subset) for subset in subsets]
        provenance["calibration"] = asdict(calibration)
    return Measured(provenance, scores.ensemble.top1, len(images), images.notes)
