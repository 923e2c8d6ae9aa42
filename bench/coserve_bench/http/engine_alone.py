"""Measures the ensemble without a server: run directly by the embedded engine, on the same cores."""

from pathlib import Path
from statistics import median
from typing import Any

from coserve_bench.engine import load_ensemble, random_images, time_runs
from coserve_bench.errors import BenchError
from coserve_bench.http.results import Distribution
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import usable_cores

BATCH_SIZES = (1, 4, 8, 16, 32)


class EngineAlone:
    """The embedded engine with one ensemble, which runs one batch after another.

    Attributes:
        latency: latency of single images.
        per_second: images per second by batch size, one figure for each round.
    """

    def __init__(self, repository: Path, name: str) -> None:
        """Load the ensemble.

        Raises:
            BenchError: the repository does not have it.
            RepositoryError, EngineError: the ensemble cannot be loaded.
        """
        ensembles = read_repository(repository)
        if name not in ensembles:
            raise BenchError(f"{repository} has no ensemble {name}, only {', '.join(ensembles)}")
        self._ensemble = ensembles[name]
        self._networks = load_ensemble(self._ensemble, EngineOptions(), usable_cores())
        self.latency = Distribution()
        sizes = [size for size in BATCH_SIZES if size <= self._ensemble.max_batch_size]
        self.per_second: dict[int, list[float]] = {size: [] for size in sizes}

    @property
    def best(self) -> float:
        """Images per second at the fastest batch size: the median over at least one round."""
        return max(map(median, self.per_second.values()))

    async def measure(self, seconds: float) -> None:
        """Measure a round: single images for some seconds, and all larger batches together for as long.

        An interrupted round leaves no figures.

        Raises:
            BenchError: a member failed.
        """
        others = seconds / max(len(self.per_second) - 1, 1)
        times = {size: await self._time(size, seconds if size == 1 else others) for size in self.per_second}
        for size, milliseconds in times.items():
            self.per_second[size].append(1000 * size * len(milliseconds) / sum(milliseconds))
        self.latency.add(times[1])

    def to_json(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {
            "latency_ms": self.latency.to_json(),
            "images_per_s": {size: round(median(rates), 2) for size, rates in self.per_second.items()},
        }

    async def _time(self, size: int, seconds: float) -> list[float]:
        """Return the milliseconds of batches of one size."""
        images = random_images(self._ensemble, size)
        # Nothing is discarded: among seconds of batches, the first one hardly counts.
        runs = time_runs(lambda: self._networks.run(images), discarded=0, at_least=1, seconds=seconds)
        return [ms async for ms, _ in runs]
