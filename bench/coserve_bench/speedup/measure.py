"""Times all plans in turns, so that a disturbance of the machine affects all of them alike."""

import gc
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from coserve_bench.engine import LoadedNetworks, random_images, time_runs
from coserve_bench.errors import BenchError
from coserve_bench.progress import Progress
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import Plan
from coserve_bench.stopping import check_stopped, run_until_stopped
from coserve_server.engines.base import Images
from coserve_server.errors import EngineError
from coserve_server.outcomes import MemberRun, overlap

WARM_UP = 1
"""Rounds that are discarded."""
BURST = 4
"""Runs timed in a turn, after one that is discarded."""
LEAST_ROUNDS = 5
"""Rounds that are measured even if the time is over."""


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        repeats: timed runs of each plan at each batch size.
        seconds: time per batch size, after which fewer repeats have to do.
    """

    repeats: int
    seconds: float

    @property
    def rounds(self) -> int:
        """Rounds of `BURST` repeats each."""
        return -(-self.repeats // BURST)


@dataclass
class Samples:
    """Measurements of a plan at one batch size.

    Attributes:
        milliseconds: time from the batch to the mean of the logits, for each run.
        overlaps: overlap of the members, for each run.
    """

    plan: Plan
    batch_size: int
    milliseconds: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)


@dataclass
class Measured:
    """All measurements.

    Attributes:
        samples: plans and batch sizes that were timed at least once.
        failed: why the networks cannot be loaded, by engine and precision.
        complete: whether every plan has its repeats; if not, Ctrl-C was pressed.
    """

    samples: list[Samples] = field(default_factory=list)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    complete: bool = False


def measure(
    plans: Sequence[Plan], batch_sizes: Sequence[int], limits: Limits, progress: Progress | None
) -> Measured:
    """Time every plan at every batch size.

    Batch sizes follow each other; at each, plans take turns until they have their repeats. Ctrl-C ends it and
    keeps the measurements so far.

    Raises:
        BenchError: no network can be loaded, or one cannot be run.
        KeyboardInterrupt: Ctrl-C was pressed before the first measurement.
    """
    measured = Measured()
    try:
        run_until_stopped(_measure(plans, batch_sizes, limits, progress, measured))
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
        loaded = []
        for done, plan in enumerate(plans, start=1):
            check_stopped()
            if plan.runner not in measured.failed:
                try:
                    networks = load(plan)
                    stack.push_async_callback(networks.close)
                    loaded.append((plan, networks))
                except EngineError as error:
                    measured.failed[plan.runner] = str(error)
            if progress is not None:
                progress("loading", done, len(plans))
        loaded = [(plan, networks) for plan, networks in loaded if plan.runner not in measured.failed]
        if not loaded:
            raise BenchError("; ".join(dict.fromkeys(measured.failed.values())))
        for batch_size in batch_sizes:
            turns = [(networks, Samples(plan, batch_size)) for plan, networks in loaded]
            measured.samples += [samples for _, samples in turns]
            await _rounds(turns, limits, progress)


async def _rounds(
    turns: list[tuple[LoadedNetworks, Samples]], limits: Limits, progress: Progress | None
) -> None:
    batch_size = turns[0][1].batch_size
    images = random_images(turns[0][1].plan.division.ensemble, batch_size)
    total = WARM_UP + limits.rounds
    start = time.perf_counter()
    for index in range(total):
        for networks, samples in turns:
            discarded = Samples(samples.plan, batch_size)
            await _turn(networks, images, samples if index >= WARM_UP else discarded)
        late = time.perf_counter() - start > limits.seconds and index + 1 >= WARM_UP + LEAST_ROUNDS
        if progress is not None:
            progress(f"batches of {batch_size}", total if late else index + 1, total)
        if late:
            return


async def _turn(networks: LoadedNetworks, images: Images, samples: Samples) -> None:
    # A garbage collection would count as the networks' time.
    gc.disable()
    try:
        runs = time_runs(lambda: _run_and_average(networks, images), discarded=1, at_least=BURST)
        async for ms, members in runs:
            samples.milliseconds.append(ms)
            samples.overlaps.append(overlap([members]))
    finally:
        gc.enable()


async def _run_and_average(networks: LoadedNetworks, images: Images) -> list[MemberRun]:
    """Run a batch and average the members' logits, which a fused network does itself."""
    parts = await networks.run(images)
    np.concatenate(
        [np.mean([run.logits for run in runs if run.logits is not None], axis=0) for runs in parts]
    )
    return list(chain.from_iterable(parts))
