"""Timing all ways in turns, so that whatever else the machine does meets all of them alike."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np

from coserve_bench.errors import BenchError
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import Plan, Way, overlap
from coserve_server.engines.base import Images
from coserve_server.errors import EngineError

WARM_UP, BURST, LEAST_ROUNDS = 1, 4, 5
"""Rounds discarded; runs timed per turn, after one that only fills the caches; rounds whatever they take."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        repeats: runs of each way at each batch size that are timed.
        seconds: per batch size, after which fewer repeats must do.
    """

    repeats: int
    seconds: float

    @property
    def rounds(self) -> int:
        """In which each way has `BURST` of its repeats."""
        return -(-self.repeats // BURST)


@dataclass
class Samples:
    """What was timed of a plan at one batch size.

    Attributes:
        milliseconds: from the batch to the mean of the logits.
        overlaps: of the members' runs.
    """

    plan: Plan
    batch_size: int
    milliseconds: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)


@dataclass
class Measured:
    """What came of measuring.

    Attributes:
        samples: of what was timed at least once.
        failed: why there are none of an engine and precision: a network cannot be loaded.
        complete: whether everything was timed as often as wanted; else Ctrl-C came before.
    """

    samples: list[Samples] = field(default_factory=list)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    complete: bool = False


def measure(
    plans: Sequence[Plan], batch_sizes: Sequence[int], limits: Limits, progress: Progress | None
) -> Measured:
    """Time every plan at every batch size.

    One batch size after the other; at each, plans take turns until each has its repeats. Ctrl-C ends it and
    leaves what was measured so far.

    Raises:
        BenchError: no network can be loaded, or one cannot be run.
        KeyboardInterrupt: before anything was measured.
    """
    measured = Measured()
    try:
        asyncio.run(_measure(plans, batch_sizes, limits, progress, measured))
        measured.complete = True
    except KeyboardInterrupt:
        measured.samples = [one for one in measured.samples if one.overlaps]
        if not measured.samples:
            raise
    return measured


async def _measure(
    plans: Sequence[Plan],
    batch_sizes: Sequence[int],
    limits: Limits,
    progress: Progress | None,
    measured: Measured,
) -> None:
    async with AsyncExitStack() as stack:
        ways = []
        for done, plan in enumerate(plans, start=1):
            if plan.runner not in measured.failed:
                try:
                    ways.append((plan, load(plan)))
                    stack.push_async_callback(ways[-1][1].close)
                except EngineError as error:
                    measured.failed[plan.runner] = str(error)
            if progress is not None:
                progress("loading", done, len(plans))
        ways = [(plan, way) for plan, way in ways if plan.runner not in measured.failed]
        if not ways:
            raise BenchError("; ".join(dict.fromkeys(measured.failed.values())))
        for batch_size in batch_sizes:
            turns = [(way, Samples(plan, batch_size)) for plan, way in ways]
            measured.samples += [samples for _, samples in turns]
            await _rounds(turns, limits, progress)


async def _rounds(turns: list[tuple[Way, Samples]], limits: Limits, progress: Progress | None) -> None:
    how = turns[0][1].plan.division.ensemble.preprocessing
    batch_size = turns[0][1].batch_size
    batch = np.random.default_rng(0).normal(size=(batch_size, *how.shape)).astype(np.float32)
    total = WARM_UP + limits.rounds
    start = time.perf_counter()
    for index in range(total):
        for way, samples in turns:
            await _turn(way, batch, samples if index >= WARM_UP else Samples(samples.plan, batch_size))
        late = time.perf_counter() - start > limits.seconds and index + 1 >= WARM_UP + LEAST_ROUNDS
        if progress is not None:
            progress(f"batches of {batch_size}", total if late else index + 1, total)
        if late:
            return


async def _turn(way: Way, batch: Images, samples: Samples) -> None:
    await way.run(batch)
    gc.disable()
    try:
        for _ in range(BURST):
            start = time.perf_counter()
            runs = await way.run(batch)
            samples.milliseconds.append((time.perf_counter() - start) * 1000)
            samples.overlaps.append(overlap(runs))
    finally:
        gc.enable()
