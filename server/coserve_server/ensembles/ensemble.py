"""An ensemble and its members."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.ensembles.calibration import UNCALIBRATED, Calibration
from coserve_server.images.preprocess import Preprocessing

Stamp = tuple[str, int, int, int]
"""A file's path, size in bytes, and the times of its last change and of its inode's, in nanoseconds."""


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        version: the version its ensemble asks for; None for the newest.
        input_name: its tensor that takes the images, FP32 `[N, 3, H, W]`.
        output_name: its tensor that gives the logits, FP32 `[N, C]`.
        weight: its share in the mean, relative to the others'.
        batches: whether Triton makes batches of the requests to it.
        model_path: its ONNX file; None where a Triton server holds it.
        stamps: of that file and those beside it, which tell it from one that takes its place.
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
    """S members that see the same images and whose logits are averaged.

    Attributes:
        input_name: its tensor that takes the images, FP32 `[N, 3, H, W]`.
        output_name: its tensor that gives the averaged logits, FP32 `[N, C]`.
        part_of: the ensemble whose member alone this is; None for a whole one.
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
        """What the engine has loaded: this, or the ensemble that this is a part of."""
        return self.part_of or self

    def version_of(self, member: Member) -> str:
        """The version the ensemble asks for, else that of the file, else the ensemble's own."""
        if member.version is not None:
            return str(member.version)
        return member.model_path.parent.name if member.model_path else self.version

    def alone(self, member: Member) -> "Ensemble":
        """One of the members as an ensemble of its own."""
        index = self.members.index(member)
        return replace(
            self,
            name=member.name,
            version=self.version_of(member),
            input_name=member.input_name,
            output_name=member.output_name,
            members=(member,),
            provenance={},
            accuracy=self.accuracy.of_member(index),
            part_of=self,
        )
