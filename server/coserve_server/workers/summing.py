"""Sums what several processes have counted, so that it reads as one server's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Metric

from coserve_server.catalogue.attempts import Attempt
from coserve_server.observability.statistics import Statistics

COUNTED = frozenset({"counter", "histogram"})
"""Types that only grow, so those of processes that have ended count too."""
COMMON = frozenset({"coserve_model_reloads"})
"""Counters of what every process does: the highest value counts."""
SUMMED = frozenset(
    {
        "coserve_requests_in_flight",
        "coserve_requests_limit",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
"""Gauges to add up; of others, such as whether a model is ready, the lowest value counts."""


@dataclass(frozen=True)
class Condition:
    """What a process serves now.

    Attributes:
        faults: why it cannot answer.
        served: the versions that it serves, by ensemble.
        not_served: why it could not load the ensembles of which it serves no version, by name.
        attempts: the files that it serves, or else those that it could not load, by name.
    """

    faults: Sequence[str] = ()
    served: Mapping[str, Sequence[str]] = field(default_factory=dict)
    not_served: Mapping[str, str] = field(default_factory=dict)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)


@dataclass
class Snapshot:
    """What a process has counted since its start."""

    metrics: list[Metric] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    def counts(self) -> "Snapshot":
        """Return what counts after the process has ended."""
        return Snapshot([one for one in self.metrics if one.type in COUNTED], self.statistics)


def add_up(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the sum; the snapshots stay as they are."""
    total = Snapshot()
    families: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for snapshot in snapshots:
        total.statistics.merge(snapshot.statistics)
        for metric in snapshot.metrics:
            if metric.name not in families:
                families[metric.name] = {}
                total.metrics.append(Metric(metric.name, metric.documentation, metric.type, metric.unit))
            _add(families[metric.name], metric)
    for metric in total.metrics:
        for (name, labels), value in families[metric.name].items():
            metric.add_sample(name, dict(labels), value)
    return total


def _add(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], metric: Metric) -> None:
    adds = metric.type in COUNTED or metric.name in SUMMED
    for sample in metric.samples:
        key = (sample.name, tuple(sample.labels.items()))
        if key not in samples:
            samples[key] = sample.value
        elif metric.name in COMMON:
            samples[key] = max(samples[key], sample.value)
        elif adds:
            samples[key] += sample.value
        else:
            samples[key] = min(samples[key], sample.value)
