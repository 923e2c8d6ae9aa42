"""An ensemble and its members."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.ensembles.calibration import UNCALIBRATED, Calibration
from coserve_server.ensembles.preprocessing import Preprocessing

Stamp = tuple[str, int, int, int]
"""A file's path, its size in bytes, and its modification and inode change times in nanoseconds."""


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        version: the version that the ensemble requires; None for the newest.
        input_name: the tensor of the images, FP32 `[N, 3, H, W]`.
        output_name: the tensor of the logits, FP32 `[N, C]`.
        weight: its share in the mean, relative to the other members' weights.
        batches: whether Triton batches requests to it.
        model_path: its ONNX file; None if a Triton server has it.
        stamps: stamps of the files in the ONNX file's folder, to detect that they are replaced.
    """

    name: str
    version: int | None
    input_name: str
    output_name: str
    weight: float
    batches: bool = False
    model_path: Path | None = None
    stamps: tuple[Stamp, ...] = ()


@dataclass(frozen=True)
class Ensemble:
    """S members that receive the same images, and whose logits are averaged.

    Attributes:
        input_name: the tensor of the images, FP32 `[N, 3, H, W]`.
        output_name: the tensor of the averaged logits, FP32 `[N, C]`.
        part_of: the whole ensemble, if this is one of its members alone.
    """

    name: str
    version: str
    max_batch_size: int
    input_name: str
    output_name: str
    members: tuple[Member, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    provenance: dict[str, Any]
    accuracy: Accuracy
    calibration: Calibration = UNCALIBRATED
    part_of: "Ensemble | None" = None

    @property
    def whole(self) -> "Ensemble":
        """Return what the engine has loaded: this ensemble, or the one that it is a part of."""
        return self.part_of or self

    def version_of(self, member: Member) -> str:
        """Return the version that the ensemble requires, else the file's, else the ensemble's own."""
        if member.version is not None:
            return str(member.version)
        return member.model_path.parent.name if member.model_path else self.version

    def alone(self, member: Member) -> "Ensemble":
        """Return a member as an ensemble of its own."""
        index = self.members.index(member)
        return replace(
            self,
            name=member.name,
            version=self.version_of(member),
            input_name=member.input_name,
            output_name=member.output_name,
            members=(member,),
            provenance={},
            accuracy=self.accuracy.for_member(index),
            part_of=self,
        )
