"""Collects the results of each load as distributions."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from coserve_bench.http.loads import ClosedLoop, Load, OpenLoop, Run

PERCENTILES = (50, 90, 99)
BOTTLENECK = 0.8
"""Share of a core above which the load generator may limit the figures."""

STAGES = ("decode", "preprocess", "queue", "inference", "combine")
"""Parts of a reply's `timings_ms`, in the order in which they happen."""
TOTAL = "total"
"""The part of `timings_ms` that spans the others."""


class Distribution:
    """Durations of many requests, in milliseconds."""

    def __init__(self, values_ms: Iterable[float] = ()) -> None:
        self._values_ms = array("d")
        self.add(values_ms)

    def add(self, values_ms: Iterable[float]) -> None:
        """Record durations; negative ones count as 0."""
        self._values_ms.extend(max(value, 0.0) for value in values_ms)

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return len(self._values_ms)

    @property
    def mean(self) -> float:
        """Mean in milliseconds; 0 without values."""
        return float(np.mean(self._values_ms)) if self else 0.0

    @property
    def max(self) -> float:
        """Largest value in milliseconds; 0 without values."""
        return max(self._values_ms, default=0.0)

    def percentile(self, percent: float) -> float:
        """Return a percentile in milliseconds, interpolated; 0 without values."""
        return float(np.percentile(self._values_ms, percent)) if self else 0.0

    def to_json(self) -> dict[str, float] | None:
        """Return mean, percentiles and maximum in milliseconds, to the microsecond; None without values."""
        if not self:
            return None
        percentiles = {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
        figures = {"mean": self.mean, **percentiles, "max": self.max}
        return {name: round(value, 3) for name, value in figures.items()}


class LoadResults:
    """Results of all runs of one load.

    Attributes:
        latency: time from the intended sending to the response.
        round_trip: time from the sending to the response.
        late: time from the intended sending to the sending.
        overhead: round trip less the server's `inference`.
        stages: the server's own times by name, and two remainders: `other` of the server's `total`, and
            `outside` of the round trip.
        errors: number of failures by kind.
        rates: responses per second, for each run.
        degraded: number of responses that lacked members.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self.latency = Distribution()
        self.round_trip = Distribution()
        self.late = Distribution()
        self.overhead = Distribution()
        self.stages: dict[str, Distribution] = {}
        self.errors: Counter[str] = Counter()
        self.rates: list[float] = []
        self.degraded = 0
        self._completed = 0
        self._seconds = 0.0
        self._processor_s = 0.0
        self._wall_s = 0.0

    def add(self, run: Run) -> None:
        """Add a run."""
        self.latency.add(run.latency)
        self.round_trip.add(run.round_trip)
        self.late.add(run.late)
        self.errors.update(run.errors)
        self.degraded += run.degraded
        self._completed += run.completed
        self._seconds += max(run.seconds, 0)
        self._processor_s += run.processor_s
        self._wall_s += run.wall_s
        if run.seconds > 0:
            self.rates.append(run.completed / run.seconds)
        if all(name in run.stages for name in (*STAGES, TOTAL)):
            self._add_stages(run)

    @property
    def begun(self) -> bool:
        """Whether the load was applied at all."""
        return self._wall_s > 0

    @property
    def per_second(self) -> float:
        """Responses per second."""
        return self._completed / self._seconds if self._seconds else 0.0

    @property
    def generator_cores(self) -> float:
        """How many cores the load generator kept busy: at most 1, since it has a single thread."""
        return self._processor_s / self._wall_s if self._wall_s else 0.0

    @property
    def was_bottleneck(self) -> bool:
        """Whether the load generator may have limited the figures."""
        return self.generator_cores > BOTTLENECK

    def per_second_without_generator(self, cores: int) -> float:
        """Return the responses per second as if the load generator had not used the cores it shared.

        Args:
            cores: number of cores that server and load generator shared.
        """
        return self.per_second / (1 - min(self.generator_cores / cores, 0.99))

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            **_load_json(self.load),
            "requests_per_s": round(self.per_second, 2),
            "requests_per_s_by_round": [round(rate, 2) for rate in self.rates],
            "answered": self.round_trip.count,
            "errors": dict(self.errors.most_common()),
            "degraded": self.degraded,
            "latency_ms": self.latency.to_json(),
            "round_trip_ms": self.round_trip.to_json(),
            "overhead_ms": self.overhead.to_json(),
            "stages_ms": {name: stage.to_json() for name, stage in self.stages.items()},
            "generator": {
                "cores": round(self.generator_cores, 3),
                "bottleneck": self.was_bottleneck,
                "late_ms": self.late.to_json(),
            },
        }

    def _add_stages(self, run: Run) -> None:
        known = [run.stages[name] for name in STAGES]
        total = run.stages[TOTAL]
        other = [whole - sum(parts) for whole, *parts in zip(total, *known, strict=True)]
        outside = [trip - whole for trip, whole in zip(run.round_trip, total, strict=True)]
        named: Mapping[str, Iterable[float]] = {**run.stages, "other": other, "outside": outside}
        for name in (*STAGES, "other", "outside", TOTAL):
            self.stages.setdefault(name, Distribution()).add(named[name])
        inference = run.stages["inference"]
        self.overhead.add(trip - model for trip, model in zip(run.round_trip, inference, strict=True))


def _load_json(load: Load) -> dict[str, Any]:
    if isinstance(load, ClosedLoop):
        return {"load": str(load), "loop": "closed", "concurrency": load.concurrency}
    assert isinstance(load, OpenLoop)
    return {"load": str(load), "loop": "open", "requested_per_s": load.rate, "connections": load.connections}
