"""The record of one request: every step notes what it did, for metrics, traces and the log."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from coserve_server.ensembles.ensemble import Ensemble
    from coserve_server.outcomes import MemberRun, Share

REQUEST_ID = "X-Request-Id"
"""Header with the request's id, in requests and answers."""


class ImageTimes(NamedTuple):
    """When decoding of an image began, when it ended, and when the image was a tensor."""

    began_ns: int
    decoded_ns: int
    ended_ns: int


@dataclass(slots=True, eq=False)
class Record:
    """One request. All times are nanoseconds on the clock of `time.perf_counter_ns`.

    Attributes:
        id: the request's id for client and log.
        began_ns: when its head had arrived.
        received_ns: when its body had arrived; its deadline counts from then.
        ensemble: the ensemble, or the single member, that it names; None until it is found.
        classifies: whether it asks for inference.
        prepared: when each image was decoded and preprocessed.
        images: number of images; 0 until they are tensors.
        prepared_ns: when all images were tensors, and waiting for the engine began.
        queue_ns: time spent waiting for the engine.
        inference_ns: time spent at the engine, waiting between batches excluded.
        shares: its rows of the batches that the engine ran.
        members: what each member did for the request as a whole.
        lacks_members: whether a member is missing that was needed.
        answered: for each image, indices of the members that answered it, ascending; empty if the same
            members answered all images.
        stopped_early: number of images that needed no further member.
        stop_confidence: the confidence at which an image needs no further member; None if all members are to
            answer.
        stop_loss: top-1 accuracy that this confidence was calibrated to lose at most; None if it was not.
        combined_ns: begin and end of combining; None if too few members answered.
        problem: kind of the problem that was the answer.
        instance: URN of that occurrence.
        traceparent: the request's trace and span (W3C Trace Context); None without tracing.
        span: OpenTelemetry's span of the request.
    """

    id: str = ""
    began_ns: int = 0
    received_ns: int = 0
    ensemble: Ensemble | None = None
    classifies: bool = False
    prepared: Sequence[ImageTimes] = ()
    images: int = 0
    prepared_ns: int = 0
    queue_ns: int = 0
    inference_ns: int = 0
    shares: Sequence[Share] = ()
    members: Sequence[MemberRun] = ()
    lacks_members: bool = False
    answered: Sequence[tuple[int, ...]] = ()
    stopped_early: int = 0
    stop_confidence: float | None = None
    stop_loss: float | None = None
    combined_ns: tuple[int, int] | None = None
    problem: str | None = None
    instance: str | None = None
    traceparent: str | None = None
    span: Any = field(default=None, repr=False)

    @property
    def degraded(self) -> bool:
        """Whether the request was answered without a member that was needed."""
        return self.combined_ns is not None and self.lacks_members

    @property
    def model(self) -> str:
        """Name of the requested model; empty if it is not served, so that clients cannot make up names."""
        return self.ensemble.name if self.ensemble else ""


logged_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id that log lines of the current task carry. Nothing else is passed this way."""


def join_ids(records: Iterable[Record]) -> str:
    """Return the ids of a batch's requests, for log lines about the batch."""
    return ", ".join(record.id for record in records if record.id)


def no_request() -> contextvars.Context:
    """Return a context for callbacks that serve many requests, so that they inherit no request's id."""
    return contextvars.Context()
