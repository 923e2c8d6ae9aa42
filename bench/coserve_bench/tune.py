"""Finding the engine, the ensemble and the threads that answer soonest, or most, on this machine."""

import asyncio
import importlib.util
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine, precisions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.pipeline.combine import combine

Goal = Literal["latency", "throughput"]
Progress = Callable[[str, int, int], None]

ENGINES = ("onnxruntime", "openvino")
BATCH_SIZES = (1, 4, 8, 16, 32, 64)
TIE = 0.03
"""Less of a gain is noise; of equals the earlier candidate wins, and the first is the default."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to serve.

    Attributes:
        top1: the share of first answers that are right; None where nobody measured it.
    """

    ensemble: Ensemble
    choice: EngineOptions
    top1: float | None = None

    @property
    def precision(self) -> str:
        """What it computes in: that of the networks, or what those of fp32 are computed in."""
        own = network_precision(self.ensemble)
        return self.choice.precision if own == "fp32" else own

    @property
    def name(self) -> str:
        """What its answers depend on, in words."""
        return f"{self.ensemble.name} in {self.precision} with {self.choice.engine}"


@dataclass(frozen=True)
class Evaluation:
    """Images whose classes are known.

    Attributes:
        batches: as the networks take them.
        targets: class indices of all, `[N]`.
    """

    batches: Iterable[Images]
    targets: NDArray[np.int64]


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


Times = dict[tuple[Candidate, int], list[float]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the measuring; the argument is what was measured until then."""


def network_precision(ensemble: Ensemble) -> str:
    """That in which the members were exported; where nobody recorded it, they count as fp32."""
    return str(ensemble.provenance.get("export", {}).get("precision", "fp32"))


def installed_engines() -> list[str]:
    """Engines of this process whose library is there."""
    return [name for name in ENGINES if importlib.util.find_spec(name) is not None]


def variants(ensembles: Sequence[Ensemble], engines: Sequence[str]) -> list[Candidate]:
    """Every ensemble in every engine and precision, with the default threads, and what was measured before.

    Raises:
        SettingsError: an engine is none of `ENGINES`, or an ensemble has other classes or takes other images
            than the first.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise SettingsError([f"engine: {engine!r} is none of {', '.join(ENGINES)}"])
    first, *others = ensembles
    for other in others:
        if (other.labels, other.preprocessing) != (first.labels, first.preprocessing):
            raise SettingsError([f"{other.name} has other classes or preprocessing than {first.name}"])
    found = []
    for ensemble, engine in product(ensembles, engines):
        members = len(ensemble.members)
        found.append(
            Candidate(ensemble, EngineOptions(engine), ensemble.accuracy.top1(range(members), members))
        )
        if network_precision(ensemble) == "fp32" and "bf16" in precisions(engine):
            # The recorded accuracy is that of the networks as they were exported.
            found.append(Candidate(ensemble, EngineOptions(engine, precision="bf16")))
    return found


def measure_top1(
    ways: Sequence[Candidate], cores: Cores, evaluation: Evaluation, progress: Progress | None = None
) -> list[Candidate]:
    """The same candidates with their accuracy on these images.

    Raises:
        EngineError: a candidate cannot be loaded.
        SettingsError: it cannot be run.
    """
    return asyncio.run(_measure_top1(ways, cores, evaluation, progress))


def comparable(ways: Sequence[Candidate], max_accuracy_loss: float) -> tuple[list[Candidate], dict[str, str]]:
    """Those that may take the place of the first, and why the others may not, by name.

    Args:
        max_accuracy_loss: of top-1 accuracy, in percentage points.
    """
    first, *others = ways
    kept, left_out = [first], {}
    for other in others:
        if first.top1 is not None and other.top1 is not None:
            lost = 100 * (first.top1 - other.top1)
            if lost > max_accuracy_loss:
                left_out[other.name] = f"{lost:.2f} points less accurate than {first.name}"
                continue
        elif (other.ensemble, other.precision) != (first.ensemble, first.precision):
            unknown = first if first.top1 is None else other
            left_out[other.name] = f"nobody measured the accuracy of {unknown.name}; give --evaluation-data"
            continue
        kept.append(other)
    return kept, left_out


def candidates(ways: Sequence[Candidate], cores: Cores) -> list[Candidate]:
    """Every number of threads, pinned or not, for each of these; the default first."""
    return [
        replace(way, choice=replace(way.choice, threads=threads, pinned=pinned))
        for way in ways
        for threads in _threads(len(way.ensemble.members), cores.count)
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
        Interrupted: after the first measurements.
    """
    times: Times = {}
    try:
        asyncio.run(_measure(times, ways, cores, batch_sizes, rounds, seconds, progress))
    except KeyboardInterrupt as interrupt:
        raise (Interrupted(_medians(times)) if times else interrupt) from None
    return _medians(times)


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


async def _measure_top1(
    ways: Sequence[Candidate], cores: Cores, evaluation: Evaluation, progress: Progress | None
) -> list[Candidate]:
    right, done = [0] * len(ways), 0
    async with _loaded(ways, cores, progress) as engines:
        for batch in evaluation.batches:
            targets = evaluation.targets[done : done + len(batch)]
            for index, (way, engine) in enumerate(zip(ways, engines, strict=True)):
                answers = await _answers(engine, way.ensemble, batch)
                right[index] += int(np.sum(answers == targets))
            done += len(batch)
            if progress is not None:
                progress("measuring accuracy", done, len(evaluation.targets))
    return [replace(way, top1=count / done) for way, count in zip(ways, right, strict=True)]


async def _measure(
    times: Times,
    ways: Sequence[Candidate],
    cores: Cores,
    batch_sizes: Sequence[int],
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> None:
    async with _loaded(ways, cores, progress) as engines:
        for done in range(rounds):
            for index, (way, engine) in enumerate(zip(ways, engines, strict=True), start=1):
                for size in batch_sizes:
                    if size <= way.ensemble.max_batch_size:
                        found = await _times(engine, way.ensemble, size, seconds)
                        times.setdefault((way, size), []).extend(found)
                if progress is not None:
                    progress("measuring", done * len(ways) + index, rounds * len(ways))


def _medians(times: Times) -> list[Measured]:
    return [Measured(way, size, statistics.median(found)) for (way, size), found in times.items()]


@asynccontextmanager
async def _loaded(
    ways: Sequence[Candidate], cores: Cores, progress: Progress | None
) -> AsyncIterator[list[EmbeddedEngine]]:
    """An engine for each candidate, closed in the end."""
    engines: list[EmbeddedEngine] = []
    try:
        for way in ways:
            engines.append(create_engine(way.choice, cores, {way.ensemble.name: way.ensemble}))
            if progress is not None:
                progress("loading", len(engines), len(ways))
        yield engines
    finally:
        for engine in engines:
            await engine.close()


async def _times(engine: EmbeddedEngine, ensemble: Ensemble, size: int, seconds: float) -> list[float]:
    """Milliseconds of batches in turn, but the first, which others' work has pushed out of the caches."""
    batch = np.random.default_rng(0).normal(size=(size, *ensemble.preprocessing.shape)).astype(np.float32)
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        await _run(engine, ensemble, batch)
        taken.append((time.perf_counter() - began) * 1000)
    return taken[1:]


async def _answers(engine: EmbeddedEngine, ensemble: Ensemble, batch: Images) -> NDArray[np.intp]:
    """Classes that the members' mean puts first, `[N]`."""
    weights = np.array([member.weight for member in ensemble.members])
    size = ensemble.max_batch_size
    parts = [await _run(engine, ensemble, batch[i : i + size]) for i in range(0, len(batch), size)]
    classes: NDArray[np.intp] = combine(np.concatenate(parts, axis=1), weights).logits.argmax(axis=1)
    return classes


async def _run(engine: EmbeddedEngine, ensemble: Ensemble, batch: Images) -> list[NDArray[np.float32]]:
    """Logits `[N, C]` of every member."""
    logits = []
    for run in await asyncio.gather(*engine.start(ensemble, batch)):
        if run.failure is not None:
            raise SettingsError([f"{ensemble.name} cannot be measured: {run.failure.reason}"])
        assert run.logits is not None
        logits.append(run.logits)
    return logits


def _threads(members: int, cores: int) -> list[int]:
    """Of each member: its even share, then one, then all cores."""
    return list(dict.fromkeys((ThreadBudget.share(members, cores).threads, 1, cores)))
