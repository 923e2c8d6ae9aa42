"""Responses of the `/v1` API."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline.classifier import Classification, Classifier, Timings
from coserve_server.pipeline.combine import Floats, top_k
from coserve_server.pipeline.prediction_sets import Method, PredictionSets, SetRule
from coserve_server.pipeline.preparation import EncodedImage


@dataclass(slots=True)
class Prediction:
    """A predicted class of an image."""

    # A reply may hold thousands, and a model takes five times as long to make.
    label: str
    class_id: Annotated[int, Field(description="Index of the class among the model's labels.")]
    probability: Annotated[
        float,
        Field(
            description="Softmax of all classes' logits divided by a temperature: the one for this number of "
            "members in the model's provenance.calibration."
        ),
    ]
    logit: Annotated[
        float,
        Field(description="Weighted mean of the members' logits, or a single member's own logit."),
    ]


class Uncertainty(BaseModel):
    """Uncertainty about one image, in nats."""

    entropy: float = Field(
        description="Entropy of the probabilities: 0 if one class is certain, ln C if all C classes are "
        "equally likely."
    )
    disagreement: float = Field(
        description="Mutual information between the class and the choice of a member: the entropy of the "
        "mean of the members' probabilities minus the mean of their entropies. 0 if the members agree."
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
        "requested with `coverage`, or if `prediction_sets.threshold` is null."
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
        "has none, so that no result has a set."
    )


class Member(BaseModel):
    """The run of one member; times count from the first member's start."""

    name: str
    used: bool = Field(description="Whether its logits are part of the mean.")
    device: str | None = Field(description="Where it ran; null if it did not answer in time.")
    start_ms: float | None
    end_ms: float | None
    error: str | None = Field(description="Why it was not used; null if it was.")


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
    degraded: bool = Field(description="Whether fewer than all members were averaged.")
    measured_top1: float | None = Field(
        description="Top-1 accuracy that the members used here reached together on a test set; null if the "
        "repository does not say."
    )
    overlap: float = Field(
        description="Sum of the members' durations / wall time from first start to last end: "
        "S if S members ran in parallel, 1 if one after another."
    )
    members: list[Member]
    timings_ms: TimingsMs
    prediction_sets: SetDescription | None = Field(description="Null unless requested with `coverage`.")
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


def describe_answer(
    answer: Classification,
    images: list[EncodedImage],
    k: int,
    member_predictions: bool,
    rule: SetRule | None = None,
) -> ClassifyReply:
    """Return the response to a classification request.

    Args:
        images: the request's images, in the answer's order.
        k: number of classes per image.
        member_predictions: whether to include each member's own predictions.
        rule: makes the prediction sets; None to leave them out.
    """
    sets = None if rule is None else rule.apply(answer.combined)
    sizes: Sequence[int | None] = [None] * len(images)
    if sets is not None and sets.sizes is not None:
        sizes = sets.sizes
    return ClassifyReply(
        model=answer.ensemble.name,
        version=answer.ensemble.version,
        degraded=any(member.failure for member in answer.members),
        measured_top1=answer.measured_top1,
        overlap=answer.overlap,
        members=_describe_runs(answer.members),
        timings_ms=_to_ms(answer.timings),
        prediction_sets=_describe_sets(sets),
        results=[
            _describe_result(answer, index, image.filename, k, member_predictions, size)
            for index, (image, size) in enumerate(zip(images, sizes, strict=True))
        ],
    )


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


def _describe_result(
    answer: Classification,
    index: int,
    filename: str | None,
    k: int,
    member_predictions: bool,
    set_size: int | None,
) -> Result:
    combined = answer.combined
    count = max(k, set_size or 0)
    listed = _list_top(answer.ensemble, combined.logits[index], combined.probabilities[index], count)
    return Result(
        filename=filename,
        predictions=listed[:k],
        uncertainty=Uncertainty(entropy=combined.entropy[index], disagreement=combined.disagreement[index]),
        member_predictions=_predict_by_member(answer, index, k) if member_predictions else None,
        prediction_set=None if set_size is None else listed[:set_size],
    )


def _describe_sets(sets: PredictionSets | None) -> SetDescription | None:
    if sets is None:
        return None
    return SetDescription(coverage=sets.coverage, method=sets.method, threshold=sets.threshold)


def _describe_runs(runs: Sequence[MemberRun]) -> list[Member]:
    origin = min((run.start_ns for run in runs if run.device is not None), default=0)
    return [
        Member(
            name=run.name,
            used=run.logits is not None,
            device=run.device,
            start_ms=None if run.device is None else (run.start_ns - origin) / 1e6,
            end_ms=None if run.device is None else (run.end_ns - origin) / 1e6,
            error=run.failure.reason if run.failure else None,
        )
        for run in runs
    ]


def _to_ms(timings: Timings) -> TimingsMs:
    return TimingsMs(**{name: ns / 1e6 for name, ns in vars(timings).items()})


def _predict_by_member(answer: Classification, index: int, k: int) -> dict[str, list[Prediction]]:
    used = [(member.name, member.logits) for member in answer.members if member.logits is not None]
    return {
        name: _list_top(answer.ensemble, logits[index], probabilities[index], k)
        for (name, logits), probabilities in zip(used, answer.combined.member_probabilities, strict=True)
    }


def _list_top(
    ensemble: Ensemble, logits: NDArray[np.floating[Any]], probabilities: Floats, k: int
) -> list[Prediction]:
    """Return the `k` most probable classes of one image.

    They are ordered by logits, since probabilities may round to 0.

    Args:
        logits: the image's, `[C]`.
        probabilities: likewise.
    """
    class_ids = top_k(logits, k)
    return [
        Prediction(ensemble.labels[class_id], class_id, probability, logit)
        for class_id, probability, logit in zip(
            class_ids.tolist(), probabilities[class_ids].tolist(), logits[class_ids].tolist(), strict=True
        )
    ]
