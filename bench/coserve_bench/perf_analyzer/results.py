"""Reports the measurements of an ensemble, as JSON and as a table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from coserve_bench.perf_analyzer.run import Latencies
from coserve_bench.perf_analyzer.target import Times

ALONE = "alone"
"""A member while the others are idle."""
TOGETHER = "together"
"""A member while all of them get the same load."""
ENSEMBLE = "ensemble"
"""Triton's ensemble."""
GATEWAY = "gateway"
"""The ensemble, served by Coserve."""


@dataclass(frozen=True)
class Measurement:
    """Measurement of one model under one load.

    Attributes:
        what: `ALONE`, `TOGETHER`, `ENSEMBLE` or `GATEWAY`.
        concurrency: requests in flight.
        models: Triton's times by model, with an ensemble's mean last; empty for the gateway.
    """

    what: str
    model: str
    concurrency: int
    latencies: Latencies
    models: dict[str, Times]

    @property
    def path(self) -> Times | None:
        """Times that add up to the latency: the model's, or those of the slowest member and the mean."""
        if not self.models:
            return None
        *members, last = self.models.values()
        slowest = max(members, key=lambda times: times.queue_ms + times.compute_ms, default=Times(0, 0))
        return Times(slowest.queue_ms + last.queue_ms, slowest.compute_ms + last.compute_ms)


@dataclass(frozen=True)
class Comparison:
    """Median latencies at one concurrency, of images that go through all members.

    Attributes:
        concurrency: requests in flight.
        slowest_alone_ms: the slowest member alone, which no ensemble can beat.
        in_turn_ms: the members one after another.
        together_ms: the slowest member while all members have the same load.
        ensemble_ms: Triton's ensemble, including its mean.
    """

    concurrency: int
    slowest_alone_ms: float
    in_turn_ms: float
    together_ms: float
    ensemble_ms: float


@dataclass
class Results:
    """All measurements of an ensemble.

    Attributes:
        triton: Triton's version.
        cores: cores that clients and server could use.
        batch_size: images per request.
        requests: minimum number of requests in each window of a measurement.
        complete: whether all loads were applied to all models.
    """

    ensemble: str
    triton: str
    cores: int
    batch_size: int
    requests: int
    measurements: list[Measurement] = field(default_factory=list)
    complete: bool = False

    def comparisons(self) -> list[Comparison]:
        """Compare concurrent members with the slowest member alone, at each concurrency."""
        # The ensemble is measured last, so its members were measured too.
        return [self._comparison(m.concurrency) for m in self.measurements if m.what == ENSEMBLE]

    def to_json(self) -> dict[str, object]:
        """Return everything, with the comparisons, ready for JSON."""
        return asdict(self) | {"comparisons": [asdict(comparison) for comparison in self.comparisons()]}

    def table(self) -> Iterator[str]:
        """Yield lines of text."""
        yield (
            f"{self.ensemble} on Triton {self.triton}, {self.cores} cores, batch {self.batch_size}, "
            f"at least 3 × {self.requests} requests each"
        )
        width = max((len(measurement.model) for measurement in self.measurements), default=0)
        heads = ("images/s", "p50 ms", "p95 ms", "p99 ms", "queue ms", "compute ms")
        yield f"{'':>3}  {'':<{width}}  {'':<8}  " + "  ".join(f"{head:>10}" for head in heads)
        for m in self.measurements:
            row = [m.latencies.images_per_s, m.latencies.p50_ms, m.latencies.p95_ms, m.latencies.p99_ms]
            if m.path is not None:
                row += [m.path.queue_ms, m.path.compute_ms]
            figures = "  ".join(f"{figure:>10.2f}" for figure in row)
            yield f"{m.concurrency:>3}  {m.model:<{width}}  {m.what:<8}  {figures}"
        for c in self.comparisons():
            together, ensemble = (c.slowest_alone_ms / ms for ms in (c.together_ms, c.ensemble_ms))
            yield (
                f"concurrency {c.concurrency}, p50: slowest member alone {c.slowest_alone_ms:.2f} ms; "
                f"members together {c.together_ms:.2f} ms, {together:.0%} as fast; "
                f"ensemble {c.ensemble_ms:.2f} ms, {ensemble:.0%}; members in turn {c.in_turn_ms:.2f} ms"
            )
        if not self.complete:
            yield "stopped early: these are the results so far"

    def _comparison(self, concurrency: int) -> Comparison:
        medians: dict[str, list[float]] = {ALONE: [], TOGETHER: [], ENSEMBLE: [], GATEWAY: []}
        for measurement in self.measurements:
            if measurement.concurrency == concurrency:
                medians[measurement.what].append(measurement.latencies.p50_ms)
        return Comparison(
            concurrency,
            max(medians[ALONE]),
            sum(medians[ALONE]),
            max(medians[TOGETHER]),
            medians[ENSEMBLE][0],
        )
