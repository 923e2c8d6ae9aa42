"""Measure what a model of large machines needs, check it on one and two cores, and write the page.

    python benchmarks/scaling.py --image photo.jpg    measure on two cores, keep the figures, write the page
    python benchmarks/scaling.py                      write the page from the stored figures
    python benchmarks/scaling.py --check              fail if the page differs from them

Measured are the ensemble without a server, with one and two threads per member and with two copies side by
side, and a server on one core and on two, whose processor time is read from /proc. The load generator runs on
other cores if there are any; else its processor time is subtracted. Run it on an idle machine, once for each
`--model`: figures of other models are kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marked_page import markdown, update

from coserve_bench.errors import BenchError
from coserve_bench.http.gateway import Access, classification
from coserve_bench.http.generator import Generator
from coserve_bench.http.images import read_images
from coserve_bench.http.loads import ClosedLoop, Interval, Target
from coserve_bench.output import write_whole
from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.report import describe_machine
from coserve_bench.tune.candidates import Candidate
from coserve_bench.tune.measure import measure
from coserve_client.errors import CoserveError
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import StartupError
from coserve_server.machine.cores import Cores, usable_cores
from coserve_server.machine.plan import plan_workers

ROOT = Path(__file__).resolve().parent.parent
MACHINES = (8, 32, 64)
BATCH_SIZE = 16
SERVE = "from coserve_cli.main import app; app()"
Results = dict[str, Any]


@dataclass(frozen=True)
class Parameters:
    """What the model needs; times per image, in milliseconds.

    Attributes:
        members: number of members, S.
        member_ms: a member's time on one thread, in batches.
        speedup: how much faster a member is on two threads.
        contention: how much slower members are while two copies run on two cores.
        request_ms: processor time of a request beside its members: HTTP, decoding, averaging.
        loop_ms: the event loop's part of it.
    """

    members: int
    member_ms: float
    speedup: float
    contention: float
    request_ms: float
    loop_ms: float

    def threads_speedup(self, threads: int) -> float:
        """Extrapolate to more threads by Amdahl's law."""
        parallel = min(1.0, max(0.0, 2 - 2 / self.speedup))
        return 1 / (1 - parallel + parallel / threads)

    def images_per_s(self, workers: int, cores: int, busy: int) -> tuple[float, str]:
        """Return the throughput of workers with so many cores each, and what limits it.

        Args:
            busy: number of cores that slow each other down as two do; contention grows linearly with it.
        """
        budget = ThreadBudget.share(self.members, (cores,))
        speedup = self.threads_speedup(budget.threads)
        work_ms = self.members * self.member_ms * (1 + (self.contention - 1) * (busy - 1))
        limits = {
            "cores": cores / (work_ms * budget.threads / speedup + self.request_ms),
            "members": budget.lanes * speedup / work_ms,
            "event loop": 1 / self.loop_ms,
        }
        limit = min(limits, key=lambda name: limits[name])
        return 1000 * workers * limits[limit], limit


def main() -> None:
    """Measure if there is an image, and write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", type=Path, help="photograph to send")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--model", default="wide_resnet16_4_s2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="under load in each round")
    parser.add_argument("--clients", type=int, default=32, help="requests that are always in progress")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/scaling.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/guides/serving/scaling.md")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stored = json.loads(arguments.results.read_text("utf-8")) if arguments.results.exists() else {}
    if arguments.image is not None:
        try:
            stored[arguments.model] = measure_all(arguments)
        except (BenchError, CoserveError, StartupError, OSError) as error:
            sys.exit(f"error: {error}")
        write_whole(arguments.results, json.dumps(stored, indent=2) + "\n")
    update(arguments.page, "benchmarks/scaling.py", list(section(stored)), arguments.check)


def measure_all(arguments: argparse.Namespace) -> Results:
    """Measure the parameters, and the model's one- and two-core points.

    Raises:
        BenchError: two cores are not to be had, or the repository lacks the model.
    """
    cores = usable_cores()
    if cores.ids is None or cores.count < 2:
        raise BenchError("two physical cores are needed that this process may pin threads to")
    served = read_repository(arguments.repository)
    if arguments.model not in served:
        raise BenchError(f"{arguments.repository} lacks {arguments.model}; choose from {', '.join(served)}")
    ensemble = served[arguments.model]
    members = len(ensemble.members)
    engine = [measure_engine(ensemble, cores.ids[:2]) for _ in range(arguments.rounds)]
    alone, speedup, contention = (statistics.median(values) for values in zip(*engine, strict=True))
    points = [
        [measure_server(arguments, cores.ids[:count]) for count in (1, 2)] for _ in range(arguments.rounds)
    ]
    of_one, of_two = (dict_medians(point) for point in zip(*points, strict=True))
    parameters = Parameters(
        members=members,
        member_ms=alone / members,
        speedup=speedup,
        contention=max(1.0, contention),
        request_ms=max(of_one["loop_ms"], of_one["process_ms"] - alone),
        loop_ms=of_one["loop_ms"],
    )
    return {
        "machine": describe_machine(Devices(cores), ()),
        "rounds": arguments.rounds,
        "parameters": asdict(parameters),
        "measured": {"1": of_one["images_per_s"], "2": of_two["images_per_s"]},
    }


def measure_engine(ensemble: Ensemble, cpus: tuple[int, ...]) -> tuple[float, float, float]:
    """Return the ms of an image on one core, the speed-up of two threads, and the slowdown of two copies."""
    size = min(BATCH_SIZE, ensemble.max_batch_size)
    one_thread = EngineOptions(threads=1)
    ways = (
        (Candidate(ensemble, one_thread), Cores(1, cpus[:1])),
        (Candidate(ensemble, EngineOptions(threads=2)), Cores(2, cpus)),
        (Candidate(ensemble, one_thread, workers=2), Cores(2, cpus)),
    )
    alone, threads, copies = (
        measure([way], cores, (size,), rounds=1, seconds=1)[0].batch_ms / size for way, cores in ways
    )
    return alone, alone / threads, copies / alone


def measure_server(arguments: argparse.Namespace, cpus: tuple[int, ...]) -> dict[str, float]:
    """Return the throughput of a server on these cores, and its processor time per request, in ms."""
    every = os.sched_getaffinity(0)
    others = every - set(cpus) or set(cpus)
    images = read_images([arguments.image])
    with start_server(arguments, cpus) as (pid, url):
        target: Target = classification(Access(url), arguments.model, images, 30)
        os.sched_setaffinity(0, others)
        try:
            with Generator(target) as generator:
                load = ClosedLoop(arguments.clients)
                generator.run(load, Interval(0, min(1.0, arguments.seconds)))
                before = processor_ms(pid)
                run = generator.run(load, Interval(0, arguments.seconds))
                process_ms, loop_ms = (
                    now - then for now, then in zip(processor_ms(pid), before, strict=True)
                )
        finally:
            os.sched_setaffinity(0, every)
    answered = len(run.round_trip)
    if not answered or run.errors:
        raise BenchError(f"the server failed: {dict(run.errors)}")
    if not loop_ms:
        raise BenchError("the event loop did not use a measurable time: give more --seconds")
    # Where there are no other cores, the generator takes a part of the server's.
    shared = run.processor_s / (run.wall_s * len(cpus)) if others == set(cpus) else 0.0
    return {
        "images_per_s": run.completed / run.seconds / (1 - shared),
        "process_ms": process_ms / answered,
        "loop_ms": loop_ms / answered,
    }


@contextmanager
def start_server(arguments: argparse.Namespace, cpus: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """Start a server on these cores; yield its process id and address."""
    every = os.sched_getaffinity(0)
    command = [sys.executable, "-c", SERVE, "serve", "--workers", "1", "--port", "0"]
    command += ["--repository", str(arguments.repository)]
    quiet = os.environ | {"COSERVE_LOG_LEVEL": "error"}
    os.sched_setaffinity(0, cpus)
    try:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet)
    finally:
        os.sched_setaffinity(0, every)
    try:
        assert server.stdout is not None
        words = server.stdout.readline().split()
        if len(words) < 3:
            raise BenchError(f"the server ended with status {server.wait(60)}")
        yield server.pid, words[2]
    finally:
        server.terminate()
        server.communicate(timeout=60)


def processor_ms(pid: int) -> tuple[float, float]:
    """Return the processor time of a process and of its main thread, which runs the event loop."""
    tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
    stats = (Path(f"/proc/{pid}/stat"), Path(f"/proc/{pid}/task/{pid}/stat"))
    # After the name, which may hold spaces: fields 14 and 15 of proc_pid_stat(5).
    fields = (stat.read_text().rpartition(")")[2].split() for stat in stats)
    process, loop = ((int(field[11]) + int(field[12])) * tick_ms for field in fields)
    return process, loop


def dict_medians(points: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    rows = list(points)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def section(stored: Results) -> Iterator[str]:
    """Yield the page's tables: the parameters, the check on one and two cores, the larger machines."""
    if not stored:
        yield "Not measured yet."
        return
    names = ("member_ms", "speedup", "contention", "request_ms", "loop_ms")
    rows = [[name, *(f"{one['parameters'][name]:.2f}" for name in names)] for name, one in stored.items()]
    yield from markdown([["ensemble", *(f"`{name}`" for name in names)], *rows])
    machines = {
        f"{one['machine']['processor']}, ONNX Runtime {one['machine']['onnxruntime']}"
        for one in stored.values()
    }
    yield f"\nMeasured on two cores ({'; '.join(sorted(machines))}).\n"
    header = ["ensemble", "cores", "workers", "threads per member", "images/s", "limited by", "measured"]
    yield from markdown([header, *(row for name, one in stored.items() for row in predictions(name, one))])


def predictions(name: str, stored: Results) -> Iterator[list[str]]:
    """Yield a row for each machine: the one- and two-core points first, with what was measured."""
    parameters = Parameters(**stored["parameters"])
    for cores in (1, 2, *MACHINES):
        slices = plan_workers(Cores(cores, None), [parameters.members])
        each = min(one.cores.count for one in slices)
        best, limit = parameters.images_per_s(len(slices), each, min(cores, 2))
        worst, _ = parameters.images_per_s(len(slices), each, cores)
        threads = ThreadBudget.share(parameters.members, (each,)).threads
        figures = f"{best:.0f}" if round(best) == round(worst) else f"{worst:.0f} to {best:.0f}"
        measured = stored["measured"].get(str(cores))
        shown = "" if measured is None else f"{measured:.0f}"
        yield [name, str(cores), str(len(slices)), str(threads), figures, limit, shown]


if __name__ == "__main__":
    main()
