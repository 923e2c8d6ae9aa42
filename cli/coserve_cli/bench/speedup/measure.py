"""Timing all ways in turns, so that whatever else the machine does meets all of them alike."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np

from coserve_cli.bench.speedup.loading import load
from coserve_cli.bench.speedup.ways import Plan, Way, overlap
from coserve_server.engines.base import Batch

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


async def measure(
    plans: Sequence[Plan], batch_sizes: Sequence[int], limits: Limits, progress: Progress | None
) -> list[Samples]:
    """Time every plan at every batch size.

    One batch size after the other; at each, plans take turns until each has its repeats.

    Raises:
        coserve_server.errors.EngineError, BenchError: a network cannot be loaded or run.
    """
    samples = []
    async with AsyncExitStack() as stack:
        ways = []
        for done, plan in enumerate(plans, start=1):
            way = load(plan)
            stack.push_async_callback(way.close)
            ways.append(way)
            if progress is not None:
                progress("loading", done, len(plans))
        for batch_size in batch_sizes:
            of_size = [Samples(plan, batch_size) for plan in plans]
            await _rounds(list(zip(ways, of_size, strict=True)), limits, progress)
            samples += of_size
    return samples


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


async def _turn(way: Way, batch: Batch, samples: Samples) -> None:
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
