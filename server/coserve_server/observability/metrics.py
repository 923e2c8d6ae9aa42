"""Counts and measures the server's work; `exposition` exports it to Prometheus.

Only the event loop writes and reads it, so nothing is locked, and an observation takes an eighth of the time
that the client library's histogram takes.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.outcomes import MemberRun, overlap

# Inclusive upper bounds of buckets.
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SHORT_S = (0.0001, 0.00025, 0.0005, *LATENCY_S)
OVERLAPS = (0.5, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 1.9, 2, 2.5, 3, 3.5, 4, 6, 8)
MEMBERS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts values by bucket.

    Attributes:
        bounds: the buckets' upper bounds, inclusive.
        counts: values per bucket; the last bucket has no bound.
        sum: sum of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


def _latency() -> Histogram:
    return Histogram(LATENCY_S)


def _short() -> Histogram:
    return Histogram(SHORT_S)


@dataclass
class ModelMetrics:
    """One model's metrics.

    Attributes:
        duration: seconds from a request's head to its answer.
        queue: seconds that an answered request waited for the engine.
        images: images answered.
        batch_size: images per batch.
        overlap: overlap of the members per batch.
        members: seconds per batch, by member name.
        errors: requests that lack a member, by member name and `late` or `failed`.
        degraded: answers without a member that was needed.
        stopped_early: images that needed no further member.
        members_per_image: members averaged for each image answered.
    """

    duration: Histogram = field(default_factory=_latency)
    queue: Histogram = field(default_factory=_short)
    images: int = 0
    batch_size: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZES))
    overlap: Histogram = field(default_factory=lambda: Histogram(OVERLAPS))
    members: defaultdict[str, Histogram] = field(default_factory=lambda: defaultdict(_short))
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    degraded: int = 0
    stopped_early: int = 0
    members_per_image: Histogram = field(default_factory=lambda: Histogram(MEMBERS))


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: requests answered, by model, route and status.
        refused: requests answered with a problem, by route and kind of problem.
        connections_refused: connections closed before a request was complete, by kind of problem.
        models: metrics by model name.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int | str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.connections_refused: Counter[str] = Counter()
        self.models: defaultdict[str, ModelMetrics] = defaultdict(ModelMetrics)

    def count_batch(self, ensemble: Ensemble, size: int, members: Sequence[MemberRun]) -> None:
        """Count a batch that the engine ran.

        Args:
            size: number of images.
            members: what the members did.
        """
        model = self.models[ensemble.name]
        model.batch_size.observe(size)
        answered = [run for run in members if run.logits is not None]
        for run in answered:
            model.members[run.name].observe((run.end_ns - run.start_ns) / 1e9)
        # A batch at one of several members has nothing to overlap with.
        if answered and len(members) == len(ensemble.members):
            model.overlap.observe(overlap([answered]))

    def count_request(self, record: Record, route: str, status: int | str, duration_s: float) -> None:
        """Count a request that has been answered."""
        self.requests[record.model, route, status] += 1
        if record.problem is not None:
            self.refused[route, record.problem] += 1
        if record.ensemble is None or not record.classifies:
            return
        model = self.models[record.ensemble.name]
        model.duration.observe(duration_s)
        for member in record.members:
            if member.failure is not None:
                model.errors[member.name, "late" if member.late else "failed"] += 1
        if record.combined_ns is not None:
            model.queue.observe(record.queue_ns / 1e9)
            model.images += record.images
            model.degraded += record.degraded
            model.stopped_early += record.stopped_early
            if record.answered:
                for members in record.answered:
                    model.members_per_image.observe(len(members))
            else:
                used = sum(member.logits is not None for member in record.members)
                model.members_per_image.observe(used, record.images)
