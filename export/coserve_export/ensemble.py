"""The contents of an ensemble in a model repository (docs/reference/model-repository.md)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment
from coserve_export.errors import DescriptionError
from coserve_images.preprocess import normalise

IMAGES = "images"
"""The input's name in ensembles, and in networks exported from torch."""
LOGITS = "logits"
"""The output's name in ensembles, and in networks exported from torch."""


MAX_NAME = 200
"""File systems allow names of 255 bytes, of which the names of members take some more."""


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB image is turned into a network's input.

    Attributes:
        height, width: the input's size in pixels.
        resize_size: length in pixels that the shorter side is resized to before the central crop; None
            resizes to `height` x `width` without keeping proportions.
        interpolation: `"bilinear"` or `"bicubic"`.
        mean, std: one number per channel, in units of pixel / 255.
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
                f"the resize size must be at least {max(self.height, self.width)}, the longer side of the "
                f"network's input, not {self.resize_size}"
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
        """Read the JSON object that docs/reference/model-repository.md defines.

        Raises:
            DescriptionError: a key is missing or unknown, or a value is invalid.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise DescriptionError(f"preprocessing must have the keys {sorted(names)}, not {sorted(values)}")
        return cls(**values)  # type: ignore[arg-type]

    def normalise(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Normalise uint8 images `[N, H, W, 3]` to network input, float32 `[N, 3, H, W]`."""
        return normalise(images, self.mean, self.std)


@dataclass(frozen=True)
class Description:
    """An ensemble without its networks.

    Attributes:
        name: the ensemble's name; its members are named `<name>_member0` and so on, its mean `<name>_mean`.
        num_members: the number of members, S.
        labels: names, in order of class index. Classes of the same name stay different classes.
        preprocessing: how images are prepared for every member.
        max_batch_size: the largest batch of every model, at least 1.
        weights: one positive number per member; None weights all members equally.
        deployment: how Triton runs the members.

    Raises:
        DescriptionError: a value is invalid.
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
            raise DescriptionError(f"the maximum batch size must be at least 1, not {self.max_batch_size}")
        preferred = self.deployment.preferred_batch_sizes
        if preferred and max(preferred) > self.max_batch_size:
            raise DescriptionError(
                f"a preferred batch size of {max(preferred)} exceeds the maximum, {self.max_batch_size}"
            )
        if self.weights is None:
            return
        if len(self.weights) != self.num_members:
            raise DescriptionError(f"{len(self.weights)} weights for {self.num_members} members")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise DescriptionError(f"weights must be positive and finite, not {self.weights}")

    @property
    def member_names(self) -> list[str]:
        """Return the names of the members' models, in order."""
        return [f"{self.name}_member{index}" for index in range(self.num_members)]

    @property
    def unequal_weights(self) -> Sequence[float] | None:
        """Return the weights, or None if all members weigh the same."""
        return self.weights if self.weights is not None and len(set(self.weights)) > 1 else None

    @property
    def mean_name(self) -> str:
        """Return the name of the model that averages the members."""
        return f"{self.name}_mean"


@dataclass(frozen=True)
class Member:
    """A member's ONNX file with the names of its input and its logits."""

    model: bytes
    input: str = IMAGES
    output: str = LOGITS


def check_name(name: str) -> None:
    """Raise DescriptionError if the name cannot name a folder, or is reserved for an ensemble's models."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DescriptionError(
            f"{name!r} is not a valid ensemble name: use letters, digits, '_', '-' and '.', and start with a "
            "letter or digit"
        )
    if len(name) > MAX_NAME:
        raise DescriptionError(
            f"{name!r} is not a valid ensemble name: it is longer than {MAX_NAME} characters"
        )
    if re.search(r"_(member\d+|mean)$", name):
        raise DescriptionError(
            f"{name!r} is not a valid ensemble name: the endings _member0, _member1, … and _mean are reserved"
        )


def check_labels(labels: Sequence[str]) -> None:
    """Raise DescriptionError unless the labels are two or more non-blank lines of text."""
    if not labels:
        raise DescriptionError("there are no labels")
    if len(labels) == 1:
        raise DescriptionError(
            f"{labels[0]!r} is the only label, so its probability would always be 1; a network that gives "
            "one logit for two classes needs both labels, first that of the class without a logit"
        )
    for number, label in enumerate(labels, start=1):
        if not label.strip() or label != label.strip() or len(label.splitlines()) != 1:
            raise DescriptionError(f"label {number} is blank, padded or has several lines: {label!r}")
        # Python turns a folder name's bytes that are not UTF-8 into surrogates.
        if re.search("[\ud800-\udfff]", label):
            raise DescriptionError(f"label {number} cannot be written as UTF-8: {label!r}")


def note_repeated_labels(labels: Sequence[str]) -> list[str]:
    """Return a note for each label that several classes have, as two of ImageNet's have "crane"."""
    indices: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        indices.setdefault(label, []).append(index)
    return [
        f"classes {', '.join(map(str, same))} have the same label {label!r}; they stay different classes, "
        "with predictions of their own, which class_id tells apart"
        for label, same in indices.items()
        if len(same) > 1
    ]
