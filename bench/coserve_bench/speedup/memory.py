"""How much memory a way to run networks takes."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coserve_bench.speedup.apart import run_apart
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import Plan
from coserve_server.errors import EngineError

STATM = Path("/proc/self/statm")
RUNS = 2


def measure_memory(plan: Plan, batch_sizes: Sequence[int]) -> list[float | None]:
    """MiB that a process of its own grows by to run a plan, by batch size in ascending order.

    Resident memory that is no file's: weights, activations and thread stacks, but not the libraries' code.
    None where the system has no /proc, or the plan cannot be loaded.

    Raises:
        BenchError: it cannot be run, or there is too little memory for such batches.
    """
    if not STATM.exists():
        return [None] * len(batch_sizes)
    return list(run_apart(_growth, plan, batch_sizes))


def _growth(plan: Plan, batch_sizes: Sequence[int], _: object) -> Sequence[float | None]:
    try:
        return asyncio.run(_run(plan, batch_sizes))
    except EngineError:
        # Whoever times the plan says why.
        return [None] * len(batch_sizes)


async def _run(plan: Plan, batch_sizes: Sequence[int]) -> list[float]:
    before = _resident()
    way = load(plan)
    how = plan.division.ensemble.preprocessing
    growth = []
    for size in batch_sizes:
        for _ in range(RUNS):
            await way.run(np.zeros((size, *how.shape), np.float32))
        growth.append((_resident() - before) / 2**20)
    await way.close()
    return growth


def _resident() -> int:
    """Bytes that are no file's; proc_pid_statm(5)."""
    _, resident, shared, *_ = STATM.read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
