"""Finding the engine, the ensemble and the threads that answer soonest, or most, on this machine."""

import asyncio
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coserve_server.cores import Cores
from coserve_server.engines.base import Batch
from coserve_server.engines.embedded.choice import create_engine
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.ensembles import Ensemble
from coserve_server.errors import SettingsError

Goal = Literal["latency", "throughput"]
Progress = Callable[[str, int, int], None]

ENGINES = ("onnxruntime", "openvino")
BATCH_SIZES = (1, 4, 8, 16, 32, 64)
TIE = 0.03
"""Less of a gain is noise; of equals the earlier candidate wins, and the first is the default."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to serve."""

    engine: str
    ensemble: Ensemble
    threads: int
    pinned: bool


@dataclass(frozen=True)
class Measured:
    """A candidate at one batch size: the median time of a batch in milliseconds, and what that makes."""

    candidate: Candidate
    batch_size: int
    batch_ms: float

    @property
    def images_per_s(self) -> float:
        """One batch after another."""
        return 1000 * self.batch_size / self.batch_ms


def installed_engines() -> list[str]:
    """Engines of this process whose library is there."""
    return [name for name in ENGINES if importlib.util.find_spec(name) is not None]


def comparable(
    ensembles: Sequence[Ensemble], max_accuracy_loss: float
) -> tuple[list[Ensemble], dict[str, str]]:
    """Those that may take the place of the first, and why the others may not.

    Args:
        max_accuracy_loss: of top-1 accuracy as measured, in percentage points.

    Raises:
        SettingsError: one has other classes or takes other images than the first.
    """
    first, *others = ensembles
    reference = _top1(first)
    kept, left_out = [first], {}
    for other in others:
        if (other.labels, other.preprocessing) != (first.labels, first.preprocessing):
            raise SettingsError([f"{other.name} has other classes or preprocessing than {first.name}"])
        accuracy = _top1(other)
        if reference is None or accuracy is None:
            unknown = first.name if reference is None else other.name
            left_out[other.name] = f"nobody measured the accuracy of {unknown}"
        elif 100 * (reference - accuracy) > max_accuracy_loss:
            lost = 100 * (reference - accuracy)
            left_out[other.name] = f"{lost:.2f} points less accurate than {first.name}"
        else:
            kept.append(other)
    return kept, left_out


def candidates(ensembles: Sequence[Ensemble], engines: Sequence[str], cores: Cores) -> list[Candidate]:
    """Every way to serve the ensembles, the default way first.

    Raises:
        SettingsError: an engine is none of `ENGINES`.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise SettingsError([f"engine: {engine!r} is none of {', '.join(ENGINES)}"])
    return [
        Candidate(engine, ensemble, threads, pinned)
        for ensemble in ensembles
        for engine in engines
        for threads in _threads(len(ensemble.members), cores.count)
        for pinned in ([True, False] if cores.ids else [False])
    ]


def measure(
    ways: Sequence[Candidate],
    cores: Cores,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = 5,
    seconds: float = 0.2,
    progress: Progress | None = None,
) -> list[Measured]:
    """Load every candidate and time it, all in turn, round after round.

    Args:
        batch_sizes: those beyond an ensemble's `max_batch_size` are left out.
        seconds: for each candidate and batch size in each round; at least two batches run.

    Raises:
        EngineError: a candidate cannot be loaded.
    """
    return asyncio.run(_measure(ways, cores, batch_sizes, rounds, seconds, progress))


def best(measured: Sequence[Measured], goal: Goal) -> Measured:
    """The soonest answer to one image, or the most images per second.

    Of equals it is the earlier candidate, and its smaller batch: a larger one would only take longer.
    """
    if goal == "latency":
        single = [one for one in measured if one.batch_size == 1]
        limit = (1 + TIE) * min(one.batch_ms for one in single)
        return next(one for one in single if one.batch_ms <= limit)
    least = max(one.images_per_s for one in measured) / (1 + TIE)
    return next(one for one in measured if one.images_per_s >= least)


async def _measure(
    ways: Sequence[Candidate],
    cores: Cores,
    batch_sizes: Sequence[int],
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> list[Measured]:
    engines: list[EmbeddedEngine] = []
    times: dict[tuple[int, int], list[float]] = {}
    try:
        for index, way in enumerate(ways):
            engines.append(await _load(way, cores))
            if progress is not None:
                progress("loading", index + 1, len(ways))
        for done in range(rounds):
            for index, way in enumerate(ways):
                for size in batch_sizes:
                    if size <= way.ensemble.max_batch_size:
                        found = await _times(
                            engines[index], way.ensemble, _images(way.ensemble, size), seconds
                        )
                        times.setdefault((index, size), []).extend(found)
                if progress is not None:
                    progress("measuring", done * len(ways) + index + 1, rounds * len(ways))
    finally:
        for engine in engines:
            await engine.close()
    return [Measured(ways[index], size, statistics.median(found)) for (index, size), found in times.items()]


async def _load(way: Candidate, cores: Cores) -> EmbeddedEngine:
    engine = create_engine(way.engine, cores, way.threads, way.pinned)
    await engine.replace(way.ensemble.name, [way.ensemble])
    return engine


async def _times(engine: EmbeddedEngine, ensemble: Ensemble, batch: Batch, seconds: float) -> list[float]:
    """Milliseconds of batches, one after another; the first, which others' work has pushed out of the caches,
    does not count."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        runs = await asyncio.gather(*engine.start(ensemble, batch))
        taken.append((time.perf_counter() - began) * 1000)
        for run in runs:
            if run.error is not None:
                raise SettingsError([f"{ensemble.name} cannot be measured: {run.error}"])
    return taken[1:]


def _images(ensemble: Ensemble, size: int) -> Batch:
    how = ensemble.preprocessing
    return np.random.default_rng(0).normal(size=(size, 3, how.height, how.width)).astype(np.float32)


def _threads(members: int, cores: int) -> list[int]:
    """Of each member: its even share, then one, then all cores."""
    return list(dict.fromkeys((ThreadBudget.share(members, cores).threads, 1, cores)))


def _top1(ensemble: Ensemble) -> float | None:
    return ensemble.accuracy.top1(range(len(ensemble.members)), len(ensemble.members))
