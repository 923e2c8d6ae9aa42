"""What was measured of an ensemble, as JSON and as a table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from coserve_bench.perf_analyzer.run import Latencies
from coserve_bench.perf_analyzer.target import Times

ALONE, TOGETHER, ENSEMBLE, GATEWAY = "alone", "together", "ensemble", "gateway"
"""A member while the others rest, or while all of them are asked as much; Triton's ensemble; coserve's."""


@dataclass(frozen=True)
class Measurement:
    """One model under one load.

    Attributes:
        models: what Triton counted of each model that ran, an ensemble's mean last; empty where it was not
            Triton that answered.
    """

    what: str
    model: str
    concurrency: int
    latencies: Latencies
    models: dict[str, Times]

    @property
    def path(self) -> Times | None:
        """What the answer waited for: the model, or the slowest member and then the mean."""
        if not self.models:
            return None
        *members, last = self.models.values()
        slowest = max(members, key=lambda times: times.queue_ms + times.compute_ms, default=Times(0, 0))
        return Times(slowest.queue_ms + last.queue_ms, slowest.compute_ms + last.compute_ms)


@dataclass(frozen=True)
class Comparison:
    """Median latencies in milliseconds at one concurrency, of one image's way through all members.

    Attributes:
        slowest_alone_ms: of the slowest member, which no ensemble can beat.
        in_turn_ms: of the members one after another.
        together_ms: of the slowest member while all are asked.
        ensemble_ms: of Triton's ensemble, its mean included.
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
        cores: that were usable, by clients and server alike.
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
        """How near concurrent members come to the slowest member alone, by concurrency."""
        # The ensemble is measured after its members: nothing else lacks where it does not.
        return [self._comparison(m.concurrency) for m in self.measurements if m.what == ENSEMBLE]

    def to_json(self) -> dict[str, object]:
        """Everything, with the comparisons."""
        return asdict(self) | {"comparisons": [asdict(comparison) for comparison in self.comparisons()]}

    def table(self) -> Iterator[str]:
        """Lines of text."""
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
