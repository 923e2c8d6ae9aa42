"""Times candidates, and finds the best one."""

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from coserve_bench.engine import LoadedNetworks, random_images, time_runs
from coserve_bench.progress import Progress
from coserve_bench.stopping import run_until_stopped
from coserve_bench.tune.candidates import Candidate, Goal, load_all
from coserve_server.machine.cores import Cores

BATCH_SIZES = (1, 4, 8, 16, 32, 64)
TIE = 0.03
"""Relative gains up to this are noise: the earlier candidate wins, and the first one is the default."""


@dataclass(frozen=True)
class Measured:
    """A candidate at one batch size.

    Attributes:
        batch_ms: median time of a batch while every copy runs one, in milliseconds.
    """

    candidate: Candidate
    batch_size: int
    batch_ms: float

    @property
    def images_per_s(self) -> float:
        """Throughput of one batch after another in every copy of the ensemble."""
        return 1000 * self.candidate.at_once * self.batch_size / self.batch_ms


Times = dict[tuple[Candidate, int], list[float]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the measuring; the argument lists what was measured until then."""


def measure(
    candidates: Sequence[Candidate],
    cores: Cores,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = 5,
    seconds: float = 0.2,
    progress: Progress | None = None,
) -> list[Measured]:
    """Load every candidate and time them in turn, round after round.

    Args:
        batch_sizes: sizes above an ensemble's `max_batch_size` are skipped.
        rounds: turns of each candidate.
        seconds: time for each candidate and batch size in each round; at least two batches are timed.

    Raises:
        EngineError: a candidate cannot be loaded.
        BenchError: a candidate cannot be run.
        Interrupted: Ctrl-C was pressed after the first measurements.
    """
    times: Times = {}
    try:
        run_until_stopped(_measure(times, candidates, cores, batch_sizes, rounds, seconds, progress))
    except KeyboardInterrupt as interrupt:
        raise (Interrupted(_medians(times)) if times else interrupt) from None
    return _medians(times)


def best(measured: Sequence[Measured], goal: Goal) -> Measured:
    """Return the shortest latency of one image, or the highest throughput.

    On a tie, take the earlier candidate and its smaller batch: a larger one would only add latency.
    """
    if goal == "latency":
        single = [one for one in measured if one.batch_size == 1]
        limit = (1 + TIE) * min(one.batch_ms for one in single)
        return next(one for one in single if one.batch_ms <= limit)
    least = max(one.images_per_s for one in measured) / (1 + TIE)
    return next(one for one in measured if one.images_per_s >= least)


async def _measure(
    times: Times,
    candidates: Sequence[Candidate],
    cores: Cores,
    batch_sizes: Sequence[int],
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> None:
    async with AsyncExitStack() as stack:
        loaded = await load_all(candidates, cores, stack, progress)
        for done in range(rounds):
            for index, (candidate, copies) in enumerate(zip(candidates, loaded, strict=True), start=1):
                for size in batch_sizes:
                    if size <= candidate.ensemble.max_batch_size:
                        side_by_side = (_time(networks, candidate, size, seconds) for networks in copies)
                        for taken in await asyncio.gather(*side_by_side):
                            times.setdefault((candidate, size), []).extend(taken)
                if progress is not None:
                    progress("measuring", done * len(candidates) + index, rounds * len(candidates))


async def _time(networks: LoadedNetworks, candidate: Candidate, size: int, seconds: float) -> list[float]:
    """Return the milliseconds of batches of one size; the first batch only refills the caches."""
    images = random_images(candidate.ensemble, size)
    runs = time_runs(lambda: networks.run(images), discarded=1, at_least=2, seconds=seconds)
    return [ms async for ms, _ in runs]


def _medians(times: Times) -> list[Measured]:
    return [Measured(candidate, size, statistics.median(taken)) for (candidate, size), taken in times.items()]
