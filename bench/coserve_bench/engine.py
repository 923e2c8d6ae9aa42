"""Times networks that are loaded in this process: the engine without a server around it."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from coserve_bench.errors import BenchError
from coserve_bench.stopping import check_stopped
from coserve_server.engines.base import Images
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun

ONNXRUNTIME = "onnxruntime"
OPENVINO = "openvino"
ENGINES = (ONNXRUNTIME, OPENVINO)

T = TypeVar("T")

# Without a handler, Python prints the members that Ctrl-C interrupts as failures.
logging.getLogger("coserve_server").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class LoadedNetworks:
    """Networks that are loaded and can run batches.

    Attributes:
        name: the ensemble's name, for error messages.
        start: submits a batch and returns the members' runs, one sequence for each part of the batch.
        close: releases the networks.
    """

    name: str
    start: Callable[[Images], Sequence[Sequence[asyncio.Future[MemberRun]]]]
    close: Callable[[], Awaitable[None]]

    async def run(self, images: Images) -> list[list[MemberRun]]:
        """Run a batch through every member, and wait for all of them.

        Returns:
            the members' runs, each with logits, for each part of the batch.

        Raises:
            BenchError: a member failed.
        """
        parts = self.start(images)
        runs = await asyncio.gather(*itertools.chain.from_iterable(parts))
        for run in runs:
            if run.failure is not None:
                raise BenchError(f"{self.name} cannot be measured: {run.failure.reason}")
        remaining = iter(runs)
        return [list(itertools.islice(remaining, len(part))) for part in parts]


def exported_precision(ensemble: Ensemble) -> str:
    """Return the precision in which the members were exported; fp32 if it was not recorded."""
    return str(ensemble.provenance.get("export", {}).get("precision", "fp32"))


def load_ensemble(ensemble: Ensemble, options: EngineOptions, cores: Cores) -> LoadedNetworks:
    """Load an ensemble as the server does.

    Raises:
        SettingsError: the engine is not installed, or cannot be used as the options say.
        EngineError: a member cannot be loaded.
    """
    engine = create_engine(options, cores, {ensemble.name: ensemble})

    def start(images: Images) -> list[list[asyncio.Future[MemberRun]]]:
        best = engine.places(ensemble)[0]
        return [engine.start(ensemble, images, copy=best.copy)]

    return LoadedNetworks(ensemble.name, start, engine.close)


def random_images(ensemble: Ensemble, count: int) -> Images:
    """Return normally distributed images, FP32 `[count, 3, H, W]`; the same ones every time."""
    shape = (count, *ensemble.preprocessing.shape)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


async def time_runs(
    run: Callable[[], Awaitable[T]], *, discarded: int, at_least: int, seconds: float = 0
) -> AsyncIterator[tuple[float, T]]:
    """Call a function again and again, and yield the milliseconds and the result of each call.

    Args:
        run: what to time, such as one batch.
        discarded: first calls that are not yielded, because they load caches that other work has evicted.
        at_least: calls to yield, however long they take.
        seconds: time after which no further call is begun; includes the discarded calls.
    """
    ends = time.perf_counter() + seconds
    for done in itertools.count():
        if done >= discarded + at_least and time.perf_counter() >= ends:
            return
        check_stopped()
        began = time.perf_counter()
        result = await run()
        ms = (time.perf_counter() - began) * 1000
        if done >= discarded:
            yield ms, result
