"""What an export did, for the command line and for scripts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from coserve_export.parity import Parity

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass(frozen=True)
class AccuracyLoss:
    """Top-1 accuracy of the ensemble as fractions of `images`, before and after it was quantised."""

    images: int
    fp32: float
    int8: float

    @property
    def points(self) -> float:
        """What was lost, in percentage points; negative where accuracy was gained."""
        return 100 * (self.fp32 - self.int8)


@dataclass(frozen=True)
class MemberReport:
    """One member: its model's name, its ONNX file's size and how it compares with the trained network.

    In int8 it is compared with the ONNX network in fp32.
    """

    name: str
    bytes: int
    parity: Parity | None = None


@dataclass(frozen=True)
class Report:
    """A written ensemble.

    Attributes:
        parity: None for ONNX files kept as they are, which there is nothing to compare with.
        loss: of accuracy by int8; None where it was not measured.
    """

    name: str
    version: int
    repository: Path
    members: list[MemberReport]
    classes: int
    parity: Parity | None = None
    loss: AccuracyLoss | None = None

    def to_json(self) -> dict[str, object]:
        """The same as a JSON object."""
        return {
            "name": self.name,
            "version": self.version,
            "repository": str(self.repository),
            "members": [
                {"name": member.name, "bytes": member.bytes, **_parity_json(member.parity)}
                for member in self.members
            ],
            "ensemble": {"classes": self.classes, **_parity_json(self.parity), **_loss_json(self.loss)},
        }


def _parity_json(parity: Parity | None) -> dict[str, object]:
    if parity is None:
        return {}
    return {
        "max_abs_difference": parity.max_abs_difference,
        "top1_agreement": parity.top1_agreement,
        "images": parity.images,
    }


def _loss_json(loss: AccuracyLoss | None) -> dict[str, object]:
    return {} if loss is None else {"accuracy_loss": asdict(loss)}
