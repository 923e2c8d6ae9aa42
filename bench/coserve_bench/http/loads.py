"""What is asked of a server, how, and what came of it."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """Whom to ask, and what.

    Attributes:
        url: of every request, with its query.
        headers: of every request.
        bodies: sent in turn, each with its content type.
        cacert: PEM file of the authorities that may certify an HTTPS server; None for the usual ones.
        timeout_s: how long to wait for an answer, from when the request was meant to be sent.
    """

    url: str
    bodies: Sequence[tuple[str, bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)
    cacert: str | None = None
    timeout_s: float = 30


@dataclass(frozen=True)
class ClosedLoop:
    """So many users, each of whom asks again as soon as the answer is there: a slow server is asked less."""

    concurrency: int

    def __str__(self) -> str:
        return f"closed, {self.concurrency}"


@dataclass(frozen=True)
class OpenLoop:
    """So many requests a second, at the times of a Poisson process, however long the answers take.

    Attributes:
        connections: at most; a request that finds none free waits for one, which counts as latency.
    """

    rate: float
    connections: int = 256

    def __str__(self) -> str:
        return f"open, {self.rate:g}/s"


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Interval:
    """For how long: `warm_up_s` seconds that do not count, and at once `seconds` that do."""

    warm_up_s: float
    seconds: float


UNREACHED = "cannot connect"
"""The failure of a request that could not even be sent."""


@dataclass
class Run:
    """What one load gave in one interval. All times are in milliseconds.

    Attributes:
        latency: of every request counted, from when it was meant to be sent to its answer; of one that timed
            out, how long it was waited for.
        round_trip: of every answered request, from when it was sent.
        late: how much later than meant every request was sent.
        stages: of every answered request, the server's own `timings_ms`, by their names; empty where it
            gives none.
        errors: how often each kind of failure occurred.
        degraded: answers that lacked members.
        completed: answers that arrived within the interval, whenever they were sent.
        seconds: how long the interval was.
        processor_s, wall_s: processor and wall time that the generator itself spent, warming up included.
        stopped: whether it was cut short on request.
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
        """Whether every request failed because nobody listens."""
        return set(self.errors) == {UNREACHED} and not self.round_trip
