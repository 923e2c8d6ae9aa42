"""Writes the JSON of classification responses; `schemas` describes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from coserve_server.api.json_pieces import write_list, write_object
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline.classifier import Classification
from coserve_server.pipeline.combine import Floats, top_k
from coserve_server.pipeline.prediction_sets import SetRule
from coserve_server.pipeline.preparation import EncodedImage


def write_reply(
    answer: Classification,
    images: Sequence[EncodedImage],
    k: int,
    member_predictions: bool,
    rule: SetRule | None = None,
) -> bytes:
    """Return the response to a classification request, a `ClassifyReply` in JSON.

    Args:
        images: the request's images, in the answer's order.
        k: number of classes per image.
        member_predictions: whether to include each member's own predictions.
        rule: makes the prediction sets; None to leave them out.
    """
    sets = None if rule is None else rule.apply(answer.combined)
    sizes: Sequence[int | None] = [None] * len(images)
    described = None
    if sets is not None:
        sizes = sets.sizes
        described = {"coverage": sets.coverage, "method": sets.method, "threshold": sets.threshold}
    stopping = answer.stopping
    fields = {
        "model": answer.ensemble.name,
        "version": answer.ensemble.version,
        "degraded": answer.degraded,
        "measured_top1": answer.measured_top1,
        "overlap": answer.overlap,
        "members": _describe_runs(answer.members),
        "timings_ms": {name: ns / 1e6 for name, ns in vars(answer.timings).items()},
        "prediction_sets": described,
        "early_stopping": stopping and {"confidence": stopping.confidence, "loss": stopping.loss},
    }
    # Most images of a request were answered by the same members.
    members = {used: _write_names(answer, used) for used in set(answer.answered)}
    results = [
        _write_result(answer, index, image.filename, k, member_predictions, size, members)
        for index, (image, size) in enumerate(zip(images, sizes, strict=True))
    ]
    written = {name: to_json(value) for name, value in fields.items()}
    return write_object((written | {"results": b"[%b]" % b",".join(results)}).items())


def _write_result(
    answer: Classification,
    index: int,
    filename: str | None,
    k: int,
    member_predictions: bool,
    set_size: int | None,
    members: Mapping[tuple[int, ...], bytes],
) -> bytes:
    combined = answer.combined
    uncertainty = {
        "entropy": float(combined.entropy[index]),
        "disagreement": float(combined.disagreement[index]),
    }
    listed = _list_top(
        answer.ensemble, combined.logits[index], combined.probabilities[index], max(k, set_size or 0)
    )
    return write_object(
        [
            ("filename", to_json(filename)),
            ("predictions", write_list(listed[:k])),
            ("uncertainty", to_json(uncertainty)),
            ("member_predictions", _write_members(answer, index, k) if member_predictions else b"null"),
            ("prediction_set", b"null" if set_size is None else write_list(listed[:set_size])),
            ("members", members[answer.answered[index]]),
        ]
    )


def _write_members(answer: Classification, index: int, k: int) -> bytes:
    used = [
        (position, member.name, member.logits)
        for position, member in enumerate(answer.members)
        if member.logits is not None
    ]
    return write_object(
        (name, write_list(_list_top(answer.ensemble, logits[index], probabilities[index], k)))
        for (position, name, logits), probabilities in zip(
            used, answer.combined.member_probabilities, strict=True
        )
        if position in answer.answered[index]
    )


def _write_names(answer: Classification, members: Iterable[int]) -> bytes:
    return to_json([answer.ensemble.members[index].name for index in members])


def _describe_runs(runs: Sequence[MemberRun]) -> list[dict[str, Any]]:
    origin = min((run.start_ns for run in runs if run.device is not None), default=0)
    return [
        {
            "name": run.name,
            "used": run.logits is not None,
            "device": run.device,
            "start_ms": None if run.device is None else (run.start_ns - origin) / 1e6,
            "end_ms": None if run.device is None else (run.end_ns - origin) / 1e6,
            "error": run.failure.reason if run.failure else None,
        }
        for run in runs
    ]


def _list_top(
    ensemble: Ensemble, logits: NDArray[np.floating[Any]], probabilities: Floats, k: int
) -> list[dict[str, Any]]:
    """Return the `k` most probable classes of one image.

    They are ordered by logits, since probabilities may round to 0.

    Args:
        logits: the image's, `[C]`.
        probabilities: likewise.
    """
    class_ids = top_k(logits, k)
    return [
        {
            "label": ensemble.labels[class_id],
            "class_id": class_id,
            "probability": probability,
            "logit": logit,
        }
        for class_id, probability, logit in zip(
            class_ids.tolist(), probabilities[class_ids].tolist(), logits[class_ids].tolist(), strict=True
        )
    ]
