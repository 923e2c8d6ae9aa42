"""Check that a server answers correctly and leaks nothing under mixed load for half an hour.

`coserve serve` serves a copy of the repository with default limits, and for `--minutes`

- clients classify in every form of `/v1` and `/v2`, one image or many, with all ensembles;
- other clients send the tests' hostile images, bodies and requests, upload slowly, stall, read slowly, and
  disconnect during a request or its response; health and metrics are scraped;
- the networks of one ensemble after another are replaced, by a new version or in place;
- now and then there are more concurrent requests than the server allows; only then is 503 a correct response.

Logits must be those that ONNX Runtime alone gives for a state of the ensemble's files that was served during
the request. The server's memory, threads and open files are sampled throughout.

    python benchmarks/soak/soak.py

Writes `benchmarks/results/soak.json`; exits with status 1 if a response was wrong or unexpected.
"""

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import psutil

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks.soak.clients import Clients
from benchmarks.soak.hostile import Hostile
from benchmarks.soak.models import Models, photographs
from benchmarks.soak.serving import serving
from coserve_cli.progress import progress_bars
from coserve_server.machine.cores import usable_cores

RESULT = Path(__file__).parents[1] / "results" / "soak.json"
WARM_UP_S = 120
"""Time before growth is measured; at most a quarter of the whole."""


class Sample(NamedTuple):
    """The server's resources after some seconds."""

    seconds: float
    memory_mb: float
    threads: int
    open_files: int


class Soak:
    """All clients of a server whose resources are sampled."""

    def __init__(self, arguments: argparse.Namespace, clients: Clients, pid: int) -> None:
        self.arguments = arguments
        self.clients = clients
        self.process = psutil.Process(pid)
        self.hostile = Hostile(clients)
        self.samples: list[Sample] = []
        self.began = time.monotonic()
        self.seconds = arguments.minutes * 60

    def sample(self) -> Sample:
        """Return the server's resources now."""
        with self.process.oneshot():
            memory = self.process.memory_info().rss / 1e6
            threads = self.process.num_threads()
            files = self.process.num_fds()
        return Sample(round(time.monotonic() - self.began, 1), round(memory, 1), threads, files)

    async def watch(self, every_s: float) -> None:
        """Sample the server, and show progress on a terminal."""
        with progress_bars() as show:
            while (done := time.monotonic() - self.began) < self.seconds:
                self.samples.append(self.sample())
                if show:
                    show("soak", int(done), int(self.seconds))
                await asyncio.sleep(min(every_s, self.seconds - done))
            if show:
                show("soak", int(self.seconds), int(self.seconds))

    async def reload(self) -> None:
        """Replace the networks of one ensemble after another, in both ways."""
        turns = zip(
            itertools.cycle(self.clients.models.members), itertools.cycle((False, True)), strict=False
        )
        for name, in_place in turns:
            await asyncio.sleep(self.arguments.reload_seconds)
            if time.monotonic() - self.began >= self.seconds:
                return
            kind = "reload in place" if in_place else "reload of a new version"
            await self.clients.attempt(kind, self.clients.reload(name, in_place))

    async def burst(self) -> None:
        """Send a burst now and then."""
        while True:
            await asyncio.sleep(self.arguments.burst_seconds)
            if time.monotonic() - self.began >= self.seconds:
                return
            await self.hostile.burst()

    async def run(self) -> None:
        """Run all clients until the time is over."""
        clients = self.clients
        hostile = self.hostile
        clients.ends = self.began + self.seconds
        many: list[tuple[int, Callable[[], Any], float]] = [
            (self.arguments.clients, clients.good, 0.15),
            (2, hostile.attack, 0.2),
            (4, hostile.rude, 0.5),
            (1, clients.scrape, 0.5),
        ]
        await asyncio.gather(
            *(clients.repeat(action, pause_s) for count, action, pause_s in many for _ in range(count)),
            *(self.reload(), self.burst(), self.watch(self.arguments.sample_seconds)),
        )
        await clients.http.aclose()

    def resources(self) -> dict[str, Any]:
        """Return medians of the first and last fifth after the warm-up, and the trend of the memory."""
        after = min(WARM_UP_S, self.seconds / 4)
        steady = [one for one in self.samples if one.seconds >= after]
        fifth = max(1, len(steady) // 5)
        first, last = (
            {name: statistics.median(getattr(one, name) for one in part) for name in Sample._fields[1:]}
            for part in (steady[:fifth], steady[-fifth:])
        )
        line = np.polyfit([one.seconds / 3600 for one in steady], [one.memory_mb for one in steady], 1)
        return {
            "warm_up_s": after,
            "start": first,
            "end": last,
            "most": {name: max(getattr(one, name) for one in steady) for name in Sample._fields[1:]},
            "memory_slope_mb_per_hour": round(float(line[0]), 1),
            "memory_mb_all_along": [one.memory_mb for one in self.samples],
        }


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Serve a copy of the repository in the folder, run all clients, and return a report."""
    repository = folder / "models"
    log = folder / "log"
    shutil.copytree(arguments.repository, repository)
    images = photographs(24)
    models = Models(repository, images)
    default = next(iter(models.members))
    options = ("--deadline-ms", str(arguments.deadline_ms))
    with serving(repository, default, log, *options, COSERVE_LOG_LEVEL="error") as (port, server):

        async def run() -> Soak:
            whole = Soak(arguments, Clients(port, models, images), server.pid)
            await whole.run()
            return whole

        whole = asyncio.run(run())
        # By then the server has closed idle connections.
        time.sleep(7)
        idle = whole.sample()
    clients = whole.clients
    if server.returncode or "Traceback" in log.read_text():
        clients.failures.append(f"server: status {server.returncode}: {log.read_text()[-2000:]}")
        clients.counts["server"]["unexpected"] += 1
    total: Counter[str] = sum(clients.counts.values(), Counter())
    return {
        "minutes": arguments.minutes,
        "deadline_ms": arguments.deadline_ms,
        "cores": usable_cores().count,
        "onnxruntime": ort.__version__,
        "total": dict(total),
        "kinds": {kind: dict(clients.counts[kind]) for kind in sorted(clients.counts)},
        "failures": clients.failures[:20],
        **whole.resources(),
        "afterwards": idle._asdict(),
    }


def main() -> None:
    """Soak one repository."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8, help="clients with valid requests")
    parser.add_argument("--reload-seconds", type=float, default=90, help="between two replacements")
    parser.add_argument("--burst-seconds", type=float, default=60, help="between two bursts")
    parser.add_argument("--deadline-ms", type=float, default=10_000, help="raise it on a busy machine")
    parser.add_argument("--sample-seconds", type=float, default=10)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(arguments, Path(folder))
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({key: value for key, value in report.items() if not key.endswith("along")}, indent=2))
    if report["total"].get("wrong", 0) + report["total"].get("unexpected", 0):
        sys.exit(1)


if __name__ == "__main__":
    main()
