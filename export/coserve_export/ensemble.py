"""What an ensemble in a model repository consists of (docs/model-repository.md)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment
from coserve_export.errors import DescriptionError

IMAGES, LOGITS = "images", "logits"
"""Names of the ensemble's input and output, and of those of the networks exported here."""


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB image becomes a network's input.

    Attributes:
        height, width: the input's size in pixels.
        resize_size: the shorter side before the central crop; None resizes to `height` x `width` exactly.
        interpolation: `"bilinear"` or `"bicubic"`.
        mean, std: per channel, in units of pixel / 255.
    """

    height: int
    width: int
    resize_size: int | None
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise DescriptionError(f"the image size must be positive, not {self.height} x {self.width}")
        if self.resize_size is not None and self.resize_size < max(self.height, self.width):
            raise DescriptionError(
                f"no {self.height} x {self.width} centre fits a shorter side of {self.resize_size} pixels"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise DescriptionError(f"interpolation must be bilinear or bicubic, not {self.interpolation!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise DescriptionError(f"{name} must be three finite numbers, one per channel, not {values}")
        if min(self.std) <= 0:
            raise DescriptionError(f"std must be positive, not {self.std}")

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Preprocessing":
        """Of the contract's JSON object; DescriptionError where a key lacks or is unknown."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise DescriptionError(f"preprocessing has the keys {sorted(values)}, not {sorted(names)}")
        return cls(**values)  # type: ignore[arg-type]

    def normalise(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn uint8 `[N, H, W, 3]` into what networks take, float32 `[N, 3, H, W]`."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        normalised = (images.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)


@dataclass(frozen=True)
class Description:
    """An ensemble without its networks.

    Attributes:
        name: of the ensemble; its members are `<name>_member0` and on, its mean `<name>_mean`.
        num_members: S.
        labels: by class index, distinct.
        weights: one positive number per member; None averages all alike.
        max_batch_size: of every model, at least 1.
        deployment: how Triton runs the members.

    Raises:
        DescriptionError: for a value that no repository can hold.
    """

    name: str
    num_members: int
    labels: Sequence[str]
    preprocessing: Preprocessing
    max_batch_size: int
    weights: Sequence[float] | None = None
    deployment: Deployment = DEFAULT_DEPLOYMENT

    def __post_init__(self) -> None:
        check_name(self.name)
        check_labels(self.labels)
        if self.num_members < 1:
            raise DescriptionError("an ensemble needs at least one member")
        if self.max_batch_size < 1:
            raise DescriptionError(f"the largest batch must be at least 1, not {self.max_batch_size}")
        preferred = self.deployment.preferred_batch_sizes
        if preferred and max(preferred) > self.max_batch_size:
            raise DescriptionError(
                f"a preferred batch of {max(preferred)} exceeds the largest, {self.max_batch_size}"
            )
        if self.weights is None:
            return
        if len(self.weights) != self.num_members:
            raise DescriptionError(f"{len(self.weights)} weights for {self.num_members} members")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise DescriptionError(f"weights must be positive and finite, not {self.weights}")

    @property
    def member_names(self) -> list[str]:
        """Names of the members' models, in order."""
        return [f"{self.name}_member{index}" for index in range(self.num_members)]

    @property
    def unequal_weights(self) -> Sequence[float] | None:
        """The weights, where they differ."""
        return self.weights if self.weights is not None and len(set(self.weights)) > 1 else None

    @property
    def mean_name(self) -> str:
        """Name of the model that averages the members."""
        return f"{self.name}_mean"


@dataclass(frozen=True)
class Member:
    """A member's ONNX file, and the names of its one input and its logits."""

    model: bytes
    input: str = IMAGES
    output: str = LOGITS


def check_name(name: str) -> None:
    """Raise DescriptionError for a name that is no folder name or belongs to another ensemble's models."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DescriptionError(
            f"{name!r} cannot name an ensemble: use letters, digits, '_', '-', '.', first a letter or digit"
        )
    if re.search(r"_(member\d+|mean)$", name):
        raise DescriptionError(
            f"{name!r} cannot name an ensemble: the endings _member0, _member1, … and _mean name its models"
        )


def check_labels(labels: Sequence[str]) -> None:
    """Raise DescriptionError unless labels are distinct, non-blank lines of text."""
    if not labels:
        raise DescriptionError("there are no labels")
    first: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label.strip() or label != label.strip() or len(label.splitlines()) != 1:
            raise DescriptionError(f"label {number} is blank, padded or of several lines: {label!r}")
        # Bytes of a folder's name that are no UTF-8 become surrogates.
        if re.search("[\ud800-\udfff]", label):
            raise DescriptionError(f"label {number} cannot be written as UTF-8: {label!r}")
        if label in first:
            raise DescriptionError(
                f"labels {first[label]} and {number} are both {label!r}; make them distinct"
            )
        first[label] = number
