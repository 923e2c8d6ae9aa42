"""Describes loads on a server and the results of applying them."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coserve_client.connecting import Certificate


@dataclass(frozen=True)
class Target:
    """The requests to send.

    Attributes:
        url: address of every request, with its query.
        bodies: content type and body of each request, sent in turn.
        headers: headers of every request.
        verify: PEM file of trusted authorities, for HTTPS; None for the client's own.
        certificate: PEM file of the client's certificate and key, or a file of each; None for no certificate.
        timeout_s: how long to wait for a response, from the intended sending of the request.
    """

    url: str
    bodies: Sequence[tuple[str, bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)
    verify: Path | None = None
    certificate: Certificate = None
    timeout_s: float = 30


@dataclass(frozen=True)
class ClosedLoop:
    """Users who each send the next request after the last response, so a slow server gets fewer requests."""

    concurrency: int

    def __str__(self) -> str:
        return f"closed, {self.concurrency}"


@dataclass(frozen=True)
class OpenLoop:
    """Requests at the times of a Poisson process, however long the responses take.

    Attributes:
        rate: requests per second, on average.
        connections: the most connections to open; waiting for a free one counts as latency.
    """

    rate: float
    connections: int = 256

    def __str__(self) -> str:
        return f"open, {self.rate:g}/s"


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Interval:
    """Duration of a load: `warm_up_s` seconds that do not count, followed by `seconds` that do."""

    warm_up_s: float
    seconds: float


UNREACHED = "cannot connect"
"""Kind of failure of a request that could not be sent."""
EXHAUSTED = "too many open files in the load generator; raise ulimit -n"
"""Kind of failure of a request for which this machine, not the server, had no connection."""


@dataclass
class Run:
    """Result of one load in one interval.

    Attributes:
        latency: milliseconds from the intended sending to the response, for every answered request, and to
            the timeout, for every request that timed out.
        round_trip: milliseconds from the sending to the response, for every answered request.
        late: milliseconds from the intended sending to the sending, for every answered request.
        stages: the server's own `timings_ms` by name, for every answered request; empty if it sends none.
        errors: number of failures by kind.
        degraded: number of responses that lacked members.
        completed: number of responses that arrived within the interval, whenever they were sent.
        seconds: length of the interval.
        processor_s, wall_s: processor and wall time of the generator itself, including the warm-up.
        stopped: whether the load was stopped early.
    """

    latency: "array[float]" = field(default_factory=lambda: array("d"))
    round_trip: "array[float]" = field(default_factory=lambda: array("d"))
    late: "array[float]" = field(default_factory=lambda: array("d"))
    stages: dict[str, "array[float]"] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    completed: int = 0
    seconds: float = 0
    processor_s: float = 0
    wall_s: float = 0
    stopped: bool = False

    @property
    def unreachable(self) -> bool:
        """Whether no request could be sent."""
        return set(self.errors) == {UNREACHED} and not self.round_trip
