"""How much memory a way to run networks takes."""

import asyncio
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from coserve_cli.bench.speedup.loading import load
from coserve_cli.bench.speedup.ways import Plan

STATM = Path("/proc/self/statm")
RUNS = 2


def measure_memory(plan: Plan, batch_sizes: Sequence[int]) -> list[float | None]:
    """Resident MiB, by batch size in ascending order, that a process of its own grows by to run a plan.

    What it read before, Python and libraries, does not count. None where the system has no /proc.
    """
    if not STATM.exists():
        return [None] * len(batch_sizes)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return list(process.submit(_grown, plan, batch_sizes).result())


def _grown(plan: Plan, batch_sizes: Sequence[int]) -> list[float]:
    return asyncio.run(_run(plan, batch_sizes))


async def _run(plan: Plan, batch_sizes: Sequence[int]) -> list[float]:
    before = _resident()
    way = load(plan)
    how = plan.division.ensemble.preprocessing
    grown = []
    for size in batch_sizes:
        for _ in range(RUNS):
            await way.run(np.zeros((size, 3, how.height, how.width), np.float32))
        grown.append((_resident() - before) / 2**20)
    await way.close()
    return grown


def _resident() -> int:
    """Bytes; proc_pid_statm(5)."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
