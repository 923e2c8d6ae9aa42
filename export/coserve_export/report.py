"""What an export did, for the command line and for scripts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coserve_export.parity import Parity

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass(frozen=True)
class MemberReport:
    """One member: its model's name, its ONNX file's size and how it compares with the trained network."""

    name: str
    bytes: int
    parity: Parity | None = None


@dataclass(frozen=True)
class Report:
    """A written ensemble; `parity` is None for ONNX files, which have no torch network to compare with."""

    name: str
    version: int
    repository: Path
    members: list[MemberReport]
    classes: int
    parity: Parity | None = None

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
            "ensemble": {"classes": self.classes, **_parity_json(self.parity)},
        }


def _parity_json(parity: Parity | None) -> dict[str, object]:
    if parity is None:
        return {}
    return {
        "max_abs_difference": parity.max_abs_difference,
        "top1_agreement": parity.top1_agreement,
        "images": parity.images,
    }
