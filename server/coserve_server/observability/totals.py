"""What the server has counted, in one process or in several."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric

from coserve_server.observability.statistics import Statistics


class Totals(Protocol):
    """What the whole server has counted since its start."""

    async def collect(self) -> Sequence[Metric]:
        """Return the metrics, in Prometheus' data model."""

    async def statistics(self) -> Statistics:
        """Return the counters of all models; they may not be changed."""


class OwnTotals:
    """The counts of this process, which is the whole server."""

    def __init__(self, registry: CollectorRegistry, statistics: Statistics) -> None:
        self._registry = registry
        self._statistics = statistics

    async def collect(self) -> Sequence[Metric]:
        """Return the metrics, in Prometheus' data model."""
        return list(self._registry.collect())

    async def statistics(self) -> Statistics:
        """Return the counters of all models; they may not be changed."""
        return self._statistics
