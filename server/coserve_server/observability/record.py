"""What becomes of a request: whoever learns it writes it down; metrics, traces and logs are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from coserve_server.ensembles.ensemble import Ensemble
    from coserve_server.pipeline.fan_out import Chunk, MemberOutcome

REQUEST_ID = "X-Request-Id"
"""Header of a request's id, both ways."""


class ImageTimes(NamedTuple):
    """When an image's decoding began, when it was decoded, and when it was a tensor."""

    began_ns: int
    decoded_ns: int
    ended_ns: int

    @property
    def ms(self) -> tuple[float, float]:
        """Milliseconds of decoding, and of preprocessing."""
        return (self.decoded_ns - self.began_ns) / 1e6, (self.ended_ns - self.decoded_ns) / 1e6


@dataclass(slots=True, eq=False)
class Record:
    """One request; all times are on the clock of `time.perf_counter_ns`.

    Attributes:
        id: of the request, as client and log know it.
        began_ns: when its head was there.
        ensemble: the ensemble, or the member alone, that it asks; None until it is found.
        classifies: whether it asks for an inference, however that ended.
        prepared: when each image was decoded and preprocessed.
        images: how many it has; 0 until they are tensors.
        asked_ns: when these began to wait for the engine.
        queue_ns: how long they waited, if they got an answer.
        chunks: what the engine ran of it, also where too few members answered.
        members: what they did for it in all.
        combined_ns: begin and end of combining what they gave; None where too few did.
        problem, instance: kind of the problem it was answered with, and the urn of this occurrence.
        traceparent: its trace and span, for servers further on (W3C Trace Context); None without tracing.
        span: OpenTelemetry's span of it.
    """

    id: str = ""
    began_ns: int = 0
    ensemble: Ensemble | None = None
    classifies: bool = False
    prepared: Sequence[ImageTimes] = ()
    images: int = 0
    asked_ns: int = 0
    queue_ns: int = 0
    chunks: Sequence[Chunk] = ()
    members: Sequence[MemberOutcome] = ()
    combined_ns: tuple[int, int] | None = None
    problem: str | None = None
    instance: str | None = None
    traceparent: str | None = None
    span: Any = None

    @property
    def degraded(self) -> bool:
        """Whether it was answered without all members."""
        return self.combined_ns is not None and any(member.error for member in self.members)

    @property
    def model(self) -> str:
        """Name of what it asked; empty where that is not served, so never a text that a client made up."""
        return self.ensemble.name if self.ensemble else ""


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def begin(record: Record) -> None:
    """Make it the record of the request that this task, and tasks it makes, answer."""
    _current.set(record)


def current() -> Record:
    """The record of the request in progress; where there is none, one that nobody reads."""
    return _current.get() or Record()
