"""Compare Coserve with other servers: same ensemble, load generator and machine.

Every round starts each server alone, checks that its logits equal Coserve's, warms it up and applies all
loads, so that a disturbance of the machine affects all of them alike. All servers answer with the five most
probable classes; access logs are off. Members run concurrently everywhere, with the same threads and options.
Each round also runs the ensemble directly in Coserve's engine, which no server can beat.

    python benchmarks/peers/compare.py --image photo.jpg

Each --image is measured on its own; files of more than 1 MB with at most 8 clients, and not at a rate.

--cpus and --cpu-shares put each server into a control group, as `docker run` does; the load generator and the
busy process stay outside. The engine is measured without limits.

The first run installs the peers into `.peers/`. Writes a file named like the model into
`benchmarks/results/peers/`. Run it on an idle machine.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import onnxruntime as ort
from container import Container, ContainerError
from measured import Kind, Measured
from servers import ServerError, servers

from coserve_bench.errors import BenchError
from coserve_bench.http.engine_alone import EngineAlone
from coserve_bench.http.images import read_images
from coserve_bench.http.loads import ClosedLoop, Interval, Load, OpenLoop
from coserve_bench.output import write_whole
from coserve_client import CoserveError
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import StartupError
from coserve_server.machine.cores import usable_cores
from coserve_server.machine.processor import read_processor

RESULTS = Path(__file__).parents[1] / "results" / "peers"


def describe(ensemble: Ensemble, cores: int) -> dict[str, Any]:
    """Describe the ensemble for `ensemble.py`, with the threads that Coserve's engine gives its members."""
    count = len(ensemble.members)
    at_once = min(count, cores)
    return {
        "files": [str(member.model_path.resolve()) for member in ensemble.members if member.model_path],
        "weights": [member.weight for member in ensemble.members],
        "at_once": at_once,
        "threads": cores // at_once,
        "labels": ensemble.labels,
        "temperature": ensemble.calibration.temperature(count),
        "preprocessing": ensemble.preprocessing.model_dump(),
    }


def compare(
    candidates: list[Measured],
    kinds: list[Kind],
    engine: EngineAlone,
    ensemble: Ensemble,
    container: Container,
    rounds: int,
    interval: Interval,
) -> None:
    """Measure all servers in turn; the first one, Coserve, gives the expected logits."""
    preprocessing = ensemble.preprocessing
    side = preprocessing.resize_size or min(preprocessing.height, preprocessing.width)
    with tempfile.TemporaryDirectory(prefix="cp-") as place:
        description = Path(place, "ensemble.json")
        description.write_text(json.dumps(describe(ensemble, container.cores)))

        def once(one: Measured, first: bool) -> None:
            one.server.install()
            with (
                # Short names, because paths of Ray's sockets are limited to 107 bytes.
                tempfile.TemporaryDirectory(dir=place, prefix="", ignore_cleanup_errors=True) as folder,
                container.prefix() as prefix,
                one.server.running(Path(folder), description, kinds[0].images[0], prefix) as running,
            ):
                if first:
                    for kind in kinds:
                        kind.expect(running, side)
                one.round(running, interval)

        for number in range(rounds):
            asyncio.run(engine.measure(interval.seconds))
            for one in candidates:
                if one.failure is None:
                    print(f"round {number + 1} of {rounds}: {one.server.name}", file=sys.stderr)
                    one.failure = failure_of(once, one, number == 0 and one is candidates[0])
                if candidates[0].failure is not None:
                    sys.exit(f"{one.server.name} gives no logits to compare with: {one.failure}")


def failure_of(once: Callable[[Measured, bool], None], one: Measured, first: bool) -> str | None:
    """Measure a server, and return why it failed, if it did."""
    try:
        once(one, first)
    except (ServerError, httpx.HTTPError) as error:
        return str(error)
    return None


def table(candidates: list[Measured]) -> None:
    """Print the results of each load."""
    for index, case in enumerate(candidates[0].cases):
        print(f"\n{case}")
        print(f"{'':<10}  {'answers/s':>10}  {'p50 ms':>8}  {'p90 ms':>8}  {'p99 ms':>8}  {'failed':>6}")
        for one in candidates:
            if one.failure is None and one.cases[index].results.latency:
                result = one.cases[index].results
                latencies = "  ".join(f"{result.latency.percentile(p):>8.2f}" for p in (50, 90, 99))
                failed = sum(result.errors.values())
                print(f"{one.server.name:<10}  {result.per_second:>10.1f}  {latencies}  {failed:>6}")
    for one in candidates:
        if one.failure is not None:
            print(f"not measured: {one.server.name} {one.failure}")


def main() -> None:
    """Measure one ensemble in all servers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="wide_resnet16_4_s2")
    parser.add_argument("--image", type=Path, action="append", required=True, help="a file or folder")
    parser.add_argument("--neighbour", action="store_true", help="measure beside a busy process too")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32, 128], help="closed loops")
    parser.add_argument(
        "--rate", type=float, nargs="*", default=[50], help="open loops, in requests per second"
    )
    parser.add_argument("--cpus", type=float, help="the servers' limit, as docker run's")
    parser.add_argument("--cpu-shares", type=int, help="the servers' weight, likewise; others have 1024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="per round and load")
    parser.add_argument("--only", nargs="*", help="names of servers to compare with Coserve")
    parser.add_argument("--output", type=Path, help="by default in benchmarks/results/peers/")
    arguments = parser.parse_args()
    container = Container(arguments.cpus, arguments.cpu_shares)
    output = arguments.output or RESULTS / f"{arguments.model}{container.suffix}.json"
    kinds = [Kind(path.stem, read_images([path])) for path in arguments.image]
    engine = EngineAlone(arguments.repository, arguments.model)
    ensemble = read_repository(arguments.repository)[arguments.model]
    loads: list[Load] = [*map(ClosedLoop, arguments.concurrency), *map(OpenLoop, arguments.rate)]
    first, *others = servers(arguments.repository, arguments.model)
    chosen = [first, *(one for one in others if not arguments.only or one.name in arguments.only)]
    candidates = [Measured(server, kinds, loads, arguments.neighbour) for server in chosen]
    interval = Interval(0.5, arguments.seconds)
    compare(candidates, kinds, engine, ensemble, container, arguments.rounds, interval)
    report = {
        "model": arguments.model,
        "images": [kind.to_json() for kind in kinds],
        "processor": read_processor().model,
        "cores": usable_cores().count,
        "cpus": arguments.cpus,
        "cpu_shares": arguments.cpu_shares,
        "onnxruntime": ort.__version__,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "engine": engine.to_json(),
        "servers": [one.to_json() for one in candidates],
    }
    write_whole(output, json.dumps(report, indent=2) + "\n")
    table(candidates)
    print(f"\nengine alone: p50 {engine.latency.percentile(50):.2f} ms, at best {engine.best:.1f} images/s")


if __name__ == "__main__":
    try:
        main()
    except (BenchError, ContainerError, CoserveError, StartupError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: all servers are stopped, and nothing was written")
