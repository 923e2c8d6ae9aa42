"""Replies of the `/v1` API."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.images.decode import EncodedImage
from coserve_server.images.preprocess import Preprocessing
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline.classifier import Classification, Classifier, Timings
from coserve_server.pipeline.combine import Floats, top_k


class Prediction(BaseModel):
    """A class an image may show."""

    label: str
    class_id: int = Field(description="Index of the class among the model's labels.")
    probability: float = Field(
        description="Softmax over all classes' logits, divided by the temperature that the model's "
        "provenance.calibration has for so many members."
    )
    logit: float = Field(description="Weighted mean of the members' logits; for one member, its own.")


class Uncertainty(BaseModel):
    """How unsure the ensemble is of one image, in nats."""

    entropy: float = Field(description="Entropy of the probabilities: 0 where sure, ln C where all alike.")
    disagreement: float = Field(
        description="Mutual information between the answer and the choice of a member: the entropy of the "
        "mean of the members' probabilities less the mean of their entropies. 0 where the members agree."
    )


class Result(BaseModel):
    """The answer for one image."""

    filename: str | None = Field(description="As sent; null where the body names no files.")
    predictions: list[Prediction] = Field(description="Most probable first.")
    uncertainty: Uncertainty
    member_predictions: dict[str, list[Prediction]] | None = Field(
        description="Each used member's own predictions by its name, where asked for."
    )


class Member(BaseModel):
    """What one member did; times count from the first member's start."""

    name: str
    used: bool = Field(description="Whether its logits are in the mean.")
    device: str | None = Field(description="Where it ran; null where it did not answer in time.")
    start_ms: float | None
    end_ms: float | None
    error: str | None = Field(description="Why it is not used.")


class TimingsMs(BaseModel):
    """Milliseconds spent; `decode` and `preprocess` are summed over the images, prepared in parallel."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    combine: float
    total: float = Field(description="From the complete body to the answer.")


class ClassifyReply(BaseModel):
    """The answer to a classification request: one result per image, in the order sent."""

    model: str
    version: str
    degraded: bool = Field(description="Whether fewer than all members were averaged.")
    measured_top1: float | None = Field(
        description="Share of right first answers that the members used here, together, reached on a test "
        "set; null where the repository does not say."
    )
    overlap: float = Field(
        description="Sum of the members' durations / wall time from first start to last end: "
        "S where S members ran in parallel, 1 where one after another."
    )
    members: list[Member]
    timings_ms: TimingsMs
    results: list[Result]


class Model(BaseModel):
    """An ensemble that is served."""

    name: str
    version: str
    versions: list[str] = Field(description="Those that requests may name, the newest last.")
    ready: bool = Field(description="Whether its quorum of members is loaded and warm.")
    quorum: int = Field(description="Members that must answer a request.")
    members: list[str]
    weights: list[float] = Field(description="Each member's share in the mean, relative to the others'.")
    max_batch_size: int
    labels: list[str] = Field(description="By class index.")
    preprocessing: Preprocessing
    provenance: dict[str, Any] = Field(description="What its repository says of its networks and accuracy.")
    load_error: str | None = Field(
        description="Why what its repository has now could not be loaded, so that an older state is served."
    )


class ModelList(BaseModel):
    """What is served."""

    default: str | None = Field(description="The ensemble that answers requests that name none.")
    models: list[Model]
    not_served: dict[str, str] = Field(description="Why others could not be loaded, by name.")


def classify_reply(
    answer: Classification, images: list[EncodedImage], k: int, member_predictions: bool
) -> ClassifyReply:
    """The core's answer in the API's words, the `k` most probable classes per image."""
    return ClassifyReply(
        model=answer.ensemble.name,
        version=answer.ensemble.version,
        degraded=any(member.failure for member in answer.members),
        measured_top1=answer.measured_top1,
        overlap=answer.overlap,
        members=_members(answer.members),
        timings_ms=_timings(answer.timings),
        results=[
            Result(
                filename=image.filename,
                predictions=_predictions(
                    answer.ensemble, answer.combined.logits[index], answer.combined.probabilities[index], k
                ),
                uncertainty=Uncertainty(
                    entropy=answer.combined.entropy[index], disagreement=answer.combined.disagreement[index]
                ),
                member_predictions=_member_predictions(answer, index, k) if member_predictions else None,
            )
            for index, image in enumerate(images)
        ],
    )


def model(classifier: Classifier, ensemble: Ensemble) -> Model:
    """An ensemble in the API's words."""
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


def _members(runs: Sequence[MemberRun]) -> list[Member]:
    """Describe the members' runs; times count from the first start."""
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


def _timings(timings: Timings) -> TimingsMs:
    return TimingsMs(**{name: ns / 1e6 for name, ns in vars(timings).items()})


def _member_predictions(answer: Classification, index: int, k: int) -> dict[str, list[Prediction]]:
    used = [(member.name, member.logits) for member in answer.members if member.logits is not None]
    return {
        name: _predictions(answer.ensemble, logits[index], probabilities[index], k)
        for (name, logits), probabilities in zip(used, answer.combined.member_probabilities, strict=True)
    }


def _predictions(
    ensemble: Ensemble, logits: NDArray[np.floating[Any]], probabilities: Floats, k: int
) -> list[Prediction]:
    """The `k` most probable classes of one image, from its logits and probabilities `[C]`.

    Logits tell them apart where probabilities round to 0.
    """
    return [
        Prediction(
            label=ensemble.labels[class_id],
            class_id=class_id,
            probability=probabilities[class_id],
            logit=logits[class_id],
        )
        for class_id in top_k(logits, k).tolist()
    ]
