"""What an export wrote, for the command line and for scripts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from coserve_export.compatibility import OLDEST, RUNTIMES, find_runtime, get_opset
from coserve_export.ensemble import Member
from coserve_export.parity import Parity

Progress = Callable[[str], None]
"""A function that is called with a short description of each step as it starts."""


@dataclass(frozen=True)
class AccuracyLoss:
    """The ensemble's top-1 accuracy before and after quantisation.

    Attributes:
        images: the number of images that it was measured on.
        fp32, int8: the fraction of them classified correctly.
    """

    images: int
    fp32: float
    int8: float

    @property
    def points(self) -> float:
        """Return the loss in percentage points; negative if accuracy improved."""
        return 100 * (self.fp32 - self.int8)


@dataclass(frozen=True)
class MemberReport:
    """A member that was written.

    Attributes:
        name: the name of its model.
        bytes: the size of its ONNX file.
        parity: its comparison with the trained network, or in int8 with its fp32 ONNX network; None for an
            ONNX file that was kept as it is.
        notes: what a user should know of it, such as the ONNX Runtime that it needs; usually nothing.
    """

    name: str
    bytes: int
    parity: Parity | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """An ensemble that was written.

    Attributes:
        name: the ensemble's name.
        version: the version that was written.
        repository: the model repository.
        members: one report per member, in order.
        classes: the number of classes.
        parity: the comparison of the ensemble's mean; None for ONNX files that were kept as they are.
        accuracy_loss: the accuracy that int8 costs; None if it was not measured.
        notes: what a user should know of the labels, and of the images that int8 was calibrated and
            measured on; usually nothing.
    """

    name: str
    version: int
    repository: Path
    members: list[MemberReport]
    classes: int
    parity: Parity | None = None
    accuracy_loss: AccuracyLoss | None = None
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {
            "name": self.name,
            "version": self.version,
            "repository": str(self.repository),
            "members": [
                {
                    "name": member.name,
                    "bytes": member.bytes,
                    **_parity_json(member.parity),
                    "notes": list(member.notes),
                }
                for member in self.members
            ],
            "ensemble": {
                "classes": self.classes,
                **_parity_json(self.parity),
                **_accuracy_loss_json(self.accuracy_loss),
            },
            "notes": list(self.notes),
        }


def report_members(
    names: Sequence[str],
    members: Sequence[Member],
    parities: Sequence[Parity] | None = None,
    notes: Sequence[Sequence[str]] | None = None,
) -> list[MemberReport]:
    """Return a report per member, which notes an ONNX Runtime that is newer than the oldest supported."""
    reports = []
    for index, (name, member) in enumerate(zip(names, members, strict=True)):
        known = [] if notes is None else list(notes[index])
        model = onnx.load_model_from_string(member.model)
        runtime = find_runtime(model)
        if runtime is not OLDEST:
            versions = f"opset {get_opset(model)}, IR {model.ir_version}"
            known.append(
                f"needs {runtime or 'an ONNX Runtime newer than ' + RUNTIMES[-1].onnxruntime}, for {versions}"
            )
        parity = None if parities is None else parities[index]
        reports.append(MemberReport(name, len(member.model), parity, known))
    return reports


def export_record(precision: str, parity: Parity, members: Sequence[Parity]) -> dict[str, object]:
    """Return the provenance's `export` (docs/reference/model-repository.md), with figures by member."""
    return {
        "precision": precision,
        **_parity_json(parity),
        "members": [
            {"max_abs_difference": member.max_abs_difference, "top1_agreement": member.top1_agreement}
            for member in members
        ],
    }


def _parity_json(parity: Parity | None) -> dict[str, object]:
    if parity is None:
        return {}
    return {
        "max_abs_difference": parity.max_abs_difference,
        "top1_agreement": parity.top1_agreement,
        "images": parity.images,
    }


def _accuracy_loss_json(loss: AccuracyLoss | None) -> dict[str, object]:
    return {} if loss is None else {"accuracy_loss": asdict(loss)}
