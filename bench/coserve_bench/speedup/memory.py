"""Measures how much memory a plan takes."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coserve_bench.progress import Progress
from coserve_bench.speedup.apart import run_apart
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import Plan
from coserve_server.errors import EngineError

STATM = Path("/proc/self/statm")
RUNS = 2


def measure_memory(plan: Plan, batch_sizes: Sequence[int]) -> list[float | None]:
    """Return the MiB that a separate process grows by to run a plan, for batch sizes in ascending order.

    Counts resident memory that is not backed by files: weights, activations and thread stacks, but not the
    code of libraries. None if the system has no /proc, or if the plan cannot be loaded.

    Raises:
        BenchError: the plan cannot be run, or there is not enough memory for the batches.
    """
    if not STATM.exists():
        return [None] * len(batch_sizes)
    return list(run_apart(_growth, plan, batch_sizes))


def _growth(plan: Plan, batch_sizes: Sequence[int], _: Progress) -> Sequence[float | None]:
    try:
        return asyncio.run(_run(plan, batch_sizes))
    except EngineError:
        # The timing of the plan reports why.
        return [None] * len(batch_sizes)


async def _run(plan: Plan, batch_sizes: Sequence[int]) -> list[float]:
    before = _resident()
    networks = load(plan)
    shape = plan.division.ensemble.preprocessing.shape
    growth = []
    for size in batch_sizes:
        for _ in range(RUNS):
            await networks.run(np.zeros((size, *shape), np.float32))
        growth.append((_resident() - before) / 2**20)
    await networks.close()
    return growth


def _resident() -> int:
    """Return the resident bytes that are not backed by files; see proc_pid_statm(5)."""
    _, resident, shared, *_ = STATM.read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
