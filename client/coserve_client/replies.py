"""The server's responses as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SetMethod = Literal["lac", "raps"]
"""How prediction sets are made: docs/reference/http-api.md, Prediction sets."""
EarlyStop = Literal["off", "loaded", "always"]
"""When images stop early: docs/guides/serving/early-stopping.md."""


@dataclass(frozen=True)
class Prediction:
    """One candidate class of an image.

    Attributes:
        label: name of the class.
        class_id: index of the class.
        probability: its probability, from 0 to 1.
        logit: its logit, combined over the members.
    """

    label: str
    class_id: int
    probability: float
    logit: float


@dataclass(frozen=True)
class Uncertainty:
    """The ensemble's uncertainty about one image, in nats.

    Attributes:
        entropy: entropy of the predicted probabilities.
        disagreement: mutual information between the predicted class and the choice of member; 0 if one member
            alone answered.
    """

    entropy: float
    disagreement: float


@dataclass(frozen=True)
class Result:
    """The classification of one image.

    Attributes:
        filename: name the image was sent under.
        predictions: candidate classes, the most probable first.
        uncertainty: how unsure the ensemble is.
        member_predictions: each member's own predictions by its name, if the request asked for them.
        prediction_set: every class in the prediction set, the most probable first; empty if no class is
            probable enough. None if the request did not ask for sets, or the ensemble has no threshold for
            this number of members.
        members: names of the members whose logits were combined for this image; None from older servers.
    """

    filename: str
    predictions: tuple[Prediction, ...]
    uncertainty: Uncertainty
    member_predictions: Mapping[str, tuple[Prediction, ...]] | None
    prediction_set: tuple[Prediction, ...] | None = None
    members: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PredictionSets:
    """How the prediction sets of a reply were made.

    Attributes:
        coverage: fraction of images whose set holds the true class.
        method: `lac` or `raps`.
        threshold: the method's threshold for the members that answered; None if the ensemble has none for
            their number, or if images were answered by different numbers of members.
    """

    coverage: float
    method: str
    threshold: float | None


@dataclass(frozen=True)
class EarlyStopping:
    """The rule by which images of a reply needed no further member.

    Attributes:
        confidence: probability of the likeliest class to exceed.
        loss: top-1 accuracy that the confidence was calibrated to lose at most, from 0 to 1; None if the
            server's setting gives the confidence.
    """

    confidence: float
    loss: float | None


@dataclass(frozen=True)
class Member:
    """One member's part in a reply.

    Attributes:
        name: name of the member.
        used: whether its logits were combined, for some image at least.
        device: device it ran on, such as `cpu:0`; None if it did not answer in time, or was not needed.
        start_ms: start in milliseconds after the first member's start.
        end_ms: end in milliseconds after the first member's start.
        error: why it gave no logits, for some image at least; None if it did, or was not needed.
    """

    name: str
    used: bool
    device: str | None
    start_ms: float | None
    end_ms: float | None
    error: str | None


@dataclass(frozen=True)
class Timings:
    """The server's time per step in milliseconds; `decode` and `preprocess` are summed over the images."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    combine: float
    total: float


@dataclass(frozen=True)
class Reply:
    """The response to one classification request.

    Attributes:
        model: name of the ensemble.
        version: its version.
        degraded: whether some members are missing from the result that were needed.
        measured_top1: top-1 accuracy of the combined members, or of `early_stopping`, on a test set, from 0
            to 1, if known.
        overlap: sum of the members' durations divided by their total wall time: S if S equal members ran
            in parallel, 1 if they ran one after another, less with pauses between them.
        members: every member of the ensemble, used or not.
        timings_ms: the server's time per step.
        results: one result per image, in the order sent.
        prediction_sets: how the results' prediction sets were made, if the request asked for them.
        early_stopping: the rule by which members answered one after another; None if all were to answer.
    """

    model: str
    version: str
    degraded: bool
    measured_top1: float | None
    overlap: float
    members: tuple[Member, ...]
    timings_ms: Timings
    results: tuple[Result, ...]
    prediction_sets: PredictionSets | None = None
    early_stopping: EarlyStopping | None = None

    @property
    def missing(self) -> tuple[Member, ...]:
        """The members that gave no logits, for some image at least, although they were needed."""
        return tuple(member for member in self.members if member.error is not None)


@dataclass(frozen=True)
class Model:
    """An ensemble that the server offers.

    Attributes:
        name: name of the ensemble.
        version: its version.
        ready: whether at least `quorum` members can answer.
        quorum: number of members that must answer a request.
        members: names of the members.
        weights: each member's weight in the mean.
        max_batch_size: largest number of images in one batch.
        labels: class names by class index.
        preprocessing: how images are resized and normalized.
        provenance: origin and measured accuracy, as recorded in the model repository.
    """

    name: str
    version: str
    ready: bool
    quorum: int
    members: tuple[str, ...]
    weights: tuple[float, ...]
    max_batch_size: int
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; -1 in `shape` stands for the number of images."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Metadata:
    """A model's metadata in the Open Inference Protocol."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Inference:
    """The response to a tensor of preprocessed images.

    Attributes:
        model: name of the ensemble.
        version: its version.
        logits: FP32 `[N, C]`, combined over the members.
        degraded: whether some members are missing from the logits that were needed.
        members: names of the members that were combined, for some image at least.
        missing: the members that gave no logits, for some image at least, although they were needed, each
            with the reason; None if there are none.
        overlap: as in `Reply`.
        image_members: names of the members that were combined, for each image; None if all members were to
            answer every image.
        early_stop_confidence: probability of the likeliest class at which an image needed no further member;
            None likewise.
        measured_top1: top-1 accuracy measured with that confidence on a test set, from 0 to 1; None likewise,
            or if it is not known.
    """

    model: str
    version: str
    logits: "NDArray[np.float32]"
    degraded: bool
    members: tuple[str, ...]
    missing: str | None
    overlap: float
    image_members: tuple[tuple[str, ...], ...] | None = None
    early_stop_confidence: float | None = None
    measured_top1: float | None = None
