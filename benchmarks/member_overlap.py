"""Do an ensemble's members gain from running at the same time?

For each ensemble of a model repository, three ways to run its S members on a batch are timed in turn, so that
whatever else the machine does meets all three alike:

concurrent    as the server runs them: all at once, each on its share of the cores
in turn       one after another, each on one thread
all cores     one after another, each on all cores, spinning off

    python benchmarks/member_overlap.py --repository model_repository

Writes `member_overlap.json` beside this file. Ratios above 1 say that concurrent is faster.
"""

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.progress import track

from coserve_server.cores import Cores, usable_cores
from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.onnxruntime import OnnxRuntimeEngine, create_session
from coserve_server.ensembles import Ensemble
from coserve_server.repository import read_repository

WARM_UP = 5


async def measure(ensemble: Ensemble, cores: Cores, batch_size: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of the three ways, their ratios, and the concurrent runs' overlap."""
    how = ensemble.preprocessing
    shape = (batch_size, 3, how.height, how.width)
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    engine = OnnxRuntimeEngine({ensemble.name: ensemble}, cores)
    overlaps: list[float] = []

    async def concurrent() -> None:
        overlaps.append(overlap(await asyncio.gather(*engine.start(ensemble, batch))))

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "concurrent": concurrent,
        "in_turn": one_after_another(ensemble, batch, threads=1),
        "all_cores": one_after_another(ensemble, batch, threads=cores.count),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in track(range(WARM_UP + repeats), ensemble.name, console=Console(stderr=True), transient=True):
        for name, way in ways.items():
            start = time.perf_counter()
            await way()
            times[name].append((time.perf_counter() - start) * 1000)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    result = {
        "members": len(ensemble.members),
        "concurrently": engine.describe(ensemble),
        "batch": batch_size,
        "median_ms": medians,
        "speedup_over_in_turn": medians["in_turn"] / medians["concurrent"],
        "speedup_over_all_cores": medians["all_cores"] / medians["concurrent"],
        "overlap": dict(zip(("p10", "median", "p90"), quantiles(overlaps[WARM_UP:]), strict=True)),
    }
    await engine.close()
    return result


def one_after_another(ensemble: Ensemble, batch: Batch, threads: int) -> Callable[[], Awaitable[None]]:
    """Run the members in turn on the calling thread."""
    sessions = [(create_session(ensemble, member, threads), member) for member in ensemble.members]

    async def run() -> None:
        for session, member in sessions:
            session.run([member.output_name], {member.input_name: batch})

    return run


def overlap(runs: list[MemberRun]) -> float:
    """Sum of durations / time from first start to last end."""
    span = max(run.end_ns for run in runs) - min(run.start_ns for run in runs)
    return sum(run.end_ns - run.start_ns for run in runs) / span


def quantiles(values: list[float]) -> list[float]:
    """The 10th, 50th and 90th percentile."""
    return [float(value) for value in np.percentile(values, [10, 50, 90])]


def main() -> None:
    """Measure every ensemble of a repository."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    cores = usable_cores()
    results = {}
    for name, ensemble in read_repository(arguments.repository).items():
        result = asyncio.run(measure(ensemble, cores, arguments.batch_size, arguments.repeats))
        results[name] = result
        times = ", ".join(f"{way} {value:.2f} ms" for way, value in result["median_ms"].items())
        print(
            f"{name}: {times}; {result['speedup_over_in_turn']:.2f} x in turn, "
            f"{result['speedup_over_all_cores']:.2f} x all cores, overlap {result['overlap']['median']:.2f}"
        )
    machine = {"processor": platform.machine(), "cores": cores.count, "onnxruntime": ort.__version__}
    report = {"machine": machine, "repeats": arguments.repeats, "ensembles": results}
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
