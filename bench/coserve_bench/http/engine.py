"""The same ensemble without a gateway: run directly by the embedded engine, on the same cores."""

import asyncio
import logging
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from coserve_bench.errors import BenchError
from coserve_bench.http.results import Distribution
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import usable_cores

BATCH_SIZES = (1, 4, 8, 16, 32)


class RawEngine:
    """The embedded engine, one batch after another.

    Attributes:
        latency: of single images.
        per_second: images a second by batch size, one figure per round.
    """

    def __init__(self, repository: Path, name: str) -> None:
        """Load the ensemble.

        Raises:
            BenchError: the repository does not have it.
            RepositoryError, EngineError: it is broken.
        """
        ensembles = read_repository(repository)
        if name not in ensembles:
            raise BenchError(f"{repository} has no ensemble {name}, only {', '.join(ensembles)}")
        # Members that Ctrl-C stops would be reported as failed.
        logging.getLogger("coserve_server").addHandler(logging.NullHandler())
        self._ensemble = ensembles[name]
        self._engine = create_engine(EngineOptions(), usable_cores(), {name: self._ensemble})
        self.latency = Distribution()
        sizes = [size for size in BATCH_SIZES if size <= self._ensemble.max_batch_size]
        self.per_second: dict[int, list[float]] = {size: [] for size in sizes}

    @property
    def best(self) -> float:
        """Images a second at the batch size that suits it best: median over the rounds, at least one."""
        return max(map(median, self.per_second.values()))

    async def measure(self, seconds: float) -> None:
        """One round: so many seconds of single images, and as many of larger batches in all.

        One that is cut short counts for nothing.
        """
        others = seconds / max(len(self.per_second) - 1, 1)
        times = {size: await self._times(size, seconds if size == 1 else others) for size in self.per_second}
        for size, took in times.items():
            self.per_second[size].append(size * len(took) / sum(took))
        self.latency.add(one * 1000 for one in times[1])

    def to_json(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "latency_ms": self.latency.to_json(),
            "images_per_s": {size: round(median(rates), 2) for size, rates in self.per_second.items()},
        }

    async def _times(self, size: int, seconds: float) -> list[float]:
        """Seconds that each batch took through all members, one after another."""
        how = self._ensemble.preprocessing
        batch = np.zeros((size, *how.shape), np.float32)
        times: list[float] = []
        began = time.perf_counter()
        while not times or time.perf_counter() < began + seconds:
            before = time.perf_counter()
            await asyncio.gather(*self._engine.start(self._ensemble, batch))
            times.append(time.perf_counter() - before)
        return times
