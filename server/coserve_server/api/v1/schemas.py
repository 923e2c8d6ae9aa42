"""Schemas of the `/v1` API's responses; `replies` writes those to classification requests."""

from typing import Any

from pydantic import BaseModel, Field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.pipeline.classifier import Classifier
from coserve_server.pipeline.prediction_sets import Method


class Prediction(BaseModel):
    """A predicted class of an image."""

    label: str
    class_id: int = Field(description="Index of the class among the model's labels.")
    probability: float = Field(
        description="Softmax of all classes' logits divided by a temperature: the one for this number of "
        "members in the model's provenance.calibration."
    )
    logit: float = Field(description="Weighted mean of the members' logits, or a single member's own logit.")


class Uncertainty(BaseModel):
    """Uncertainty about one image, in nats."""

    entropy: float = Field(
        description="Entropy of the probabilities: 0 if one class is certain, ln C if all C classes are "
        "equally likely."
    )
    disagreement: float = Field(
        description="Mutual information between the class and the choice of a member: the entropy of the "
        "mean of the members' probabilities minus the mean of their entropies. 0 if the members agree, and "
        "if one member alone answered."
    )


class Result(BaseModel):
    """The result for one image."""

    filename: str | None = Field(description="As sent; null if the body has no file names.")
    predictions: list[Prediction] = Field(description="Most probable first.")
    uncertainty: Uncertainty
    member_predictions: dict[str, list[Prediction]] | None = Field(
        description="Own predictions of each member that was used, by its name; null unless requested."
    )
    prediction_set: list[Prediction] | None = Field(
        description="All classes in the prediction set, most probable first; it may be empty. Null unless "
        "requested with `coverage`, or if the model has no threshold for this number of members."
    )
    members: list[str] = Field(
        description="Members whose logits were averaged for this image. Images of a request have different "
        "ones if it stopped early."
    )


class SetDescription(BaseModel):
    """How the prediction sets of a reply were made."""

    coverage: float = Field(
        description="Fraction of images whose set holds the true class, on average over images like those of "
        "the calibration."
    )
    method: Method
    threshold: float | None = Field(
        description="The one in the model's provenance.calibration for this number of members; null if it "
        "has none, so that no result has a set, or if images were answered by different numbers of members, "
        "each with a threshold of its own."
    )


class EarlyStoppingDescription(BaseModel):
    """The rule by which images needed no further member."""

    confidence: float = Field(description="Probability of the likeliest class to exceed.")
    loss: float | None = Field(
        description="Top-1 accuracy that the confidence was calibrated to lose at most, as a fraction; null "
        "if the server's setting gives the confidence."
    )


class Member(BaseModel):
    """The run of one member; times count from the first member's start."""

    name: str
    used: bool = Field(description="Whether its logits are part of the mean, for some image at least.")
    device: str | None = Field(
        description="Where it ran; null if it did not answer in time, or was not needed."
    )
    start_ms: float | None
    end_ms: float | None
    error: str | None = Field(
        description="Why it gave no logits, for some image at least; null if it did, or was not needed."
    )


class TimingsMs(BaseModel):
    """Durations in milliseconds; `decode` and `preprocess` are summed over images prepared in parallel."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    combine: float
    total: float = Field(description="From the complete body to the answer.")


class ClassifyReply(BaseModel):
    """The response to a classification request: one result per image, in the order sent."""

    model: str
    version: str
    degraded: bool = Field(description="Whether a member is missing that was needed.")
    measured_top1: float | None = Field(
        description="Top-1 accuracy that the members used here reached together on a test set, or that "
        "`early_stopping` did; null if the repository does not say."
    )
    overlap: float = Field(
        description="Sum of the members' durations / wall time from first start to last end: "
        "S if S members ran in parallel, 1 if one after another, less with pauses between them."
    )
    members: list[Member]
    timings_ms: TimingsMs
    prediction_sets: SetDescription | None = Field(description="Null unless requested with `coverage`.")
    early_stopping: EarlyStoppingDescription | None = Field(
        description="The rule by which members answered one after another; null if all were to answer."
    )
    results: list[Result]


class Model(BaseModel):
    """A served ensemble."""

    name: str
    version: str
    versions: list[str] = Field(description="Versions that requests may name, newest last.")
    ready: bool = Field(description="Whether its quorum of members is loaded and warm.")
    quorum: int = Field(description="Members that must answer a request.")
    members: list[str]
    weights: list[float] = Field(description="Each member's weight in the mean, relative to the others'.")
    max_batch_size: int
    labels: list[str] = Field(description="Class names, by class index.")
    preprocessing: Preprocessing
    provenance: dict[str, Any] = Field(
        description="What the repository says about the networks and their accuracy."
    )
    load_error: str | None = Field(
        description="Why the repository's newest files could not be loaded, so that an older state is "
        "served; null if they are served."
    )


class ModelList(BaseModel):
    """The served ensembles."""

    default: str | None = Field(description="Ensemble that answers requests that name none.")
    models: list[Model]
    not_served: dict[str, str] = Field(description="Why other ensembles could not be loaded, by name.")


def describe_model(classifier: Classifier, ensemble: Ensemble) -> Model:
    """Return the description of an ensemble."""
    return Model(
        name=ensemble.name,
        version=ensemble.version,
        versions=[version.version for version in classifier.catalogue.versions(ensemble.name)],
        ready=classifier.catalogue.ready(ensemble),
        quorum=classifier.catalogue.quorum(ensemble),
        members=[member.name for member in ensemble.members],
        weights=[member.weight for member in ensemble.members],
        max_batch_size=ensemble.max_batch_size,
        labels=list(ensemble.labels),
        preprocessing=ensemble.preprocessing,
        provenance=ensemble.provenance,
        load_error=classifier.catalogue.load_errors.get(ensemble.name),
    )
