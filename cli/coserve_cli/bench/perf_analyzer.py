"""`coserve bench perf-analyzer`."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coserve_cli.bench.load import Load, PerfAnalyzer, Target
    from coserve_cli.bench.results import Measurement, Results
    from coserve_cli.bench.triton_target import TritonEnsemble


def _levels(text: str) -> list[int]:
    """Concurrency levels of `start:end[:step]`, both ends included."""
    try:
        start, end, step = (int(part) for part in (text + ":1" * (2 - text.count(":"))).split(":"))
        levels = list(range(start, max(start, end) + 1, step))
    except ValueError:
        levels = []
    if not levels or levels[0] < 1:
        raise typer.BadParameter(f"{text!r} is not a range like 4, 1:4 or 2:8:2")
    return levels


def perf_analyzer(
    repository: Annotated[
        Path | None, typer.Option(help="A model repository, for which a Triton server is started.")
    ] = None,
    triton: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Triton server that runs already (its gRPC port)."),
    ] = None,
    gateway: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Also a coserve server, over HTTP.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="COSERVE_API_KEY",
            help="A key for the gateway; other users of this machine can read it while perf_analyzer runs.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The ensemble; may be left out where there is one.")
    ] = None,
    concurrency: Annotated[
        str, typer.Option(metavar="START:END[:STEP]", help="Requests in flight at once.")
    ] = "1:4",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.")] = 1,
    requests: Annotated[
        int, typer.Option(min=1, help="At least as many in each of the three windows of a measurement.")
    ] = 100,
    binary: Annotated[
        Path | None, typer.Option(help="perf_analyzer; by default what make perf-analyzer left, or on PATH.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file to write the results to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Load an ensemble in Triton with NVIDIA's perf_analyzer: members alone, all together, the ensemble.

    Says how near members that run at once come to the slowest of them alone.
    """
    if (repository is None) == (triton is None):
        raise typer.BadParameter("give either --repository or --triton")
    levels = _levels(concurrency)

    from coserve_cli.bench.errors import BenchError
    from coserve_cli.bench.load import Load, Target
    from coserve_cli.bench.triton_target import connect
    from coserve_cli.errors import one_line
    from coserve_cli.output import OutputError, write_whole
    from coserve_cli.progress import progress_bars
    from coserve_server.errors import StartupError

    # Stopping on request clears up, whoever asks.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    loads = [Load(level, batch_size, requests) for level in levels]
    with (
        one_line(BenchError, OutputError, StartupError, OSError),
        _triton(repository, triton, model) as address,
        connect(address, model) as ensemble,
        progress_bars() as progress,
    ):
        headers = (f"X-API-Key: {api_key}",) if api_key else ()
        target = Target(gateway, "http", ensemble.name, headers=headers) if gateway else None
        results = _measure(ensemble, address, target, loads, binary, progress)
        text = json.dumps(results.to_json(), indent=2)
        if output is not None:
            write_whole(output, f"{text}\n")
    typer.echo(text if as_json else "\n".join(results.table()))


@contextmanager
def _triton(repository: Path | None, address: str | None, model: str | None) -> Iterator[str]:
    """The gRPC address of the server given, or of one started for the repository."""
    if repository is None:
        assert address is not None
        yield address
        return
    from coserve_server.triton_server.server import Ports, run_triton

    options = ["--model-control-mode=explicit", f"--load-model={model}"] if model else []
    with run_triton(
        repository, lambda line: None, host="127.0.0.1", ports=Ports(), arguments=options
    ) as server:
        yield f"{server.host}:{server.ports.grpc}"


def _measure(
    ensemble: "TritonEnsemble",
    address: str,
    gateway: "Target | None",
    loads: "list[Load]",
    binary: Path | None,
    progress: Callable[[str, int, int], None] | None,
) -> "Results":
    from coserve_cli.bench.load import PerfAnalyzer, Target
    from coserve_cli.bench.results import ALONE, ENSEMBLE, GATEWAY, TOGETHER, Results
    from coserve_server.cores import usable_cores

    members = [Target(address, "grpc", name, ensemble.versions[name]) for name in ensemble.members]
    rounds = [(ALONE, [member]) for member in members] + [(TOGETHER, members)]
    rounds.append((ENSEMBLE, [Target(address, "grpc", ensemble.name)]))
    if gateway is not None:
        rounds.append((GATEWAY, [gateway]))

    measurements: list[Measurement] = []
    with PerfAnalyzer(binary, ensemble.input_name, ensemble.shape) as analyzer:
        for done, (load, (what, targets)) in enumerate(product(loads, rounds), start=1):
            measurements += _round(analyzer, ensemble, load, what, targets)
            if progress is not None:
                progress("measuring", done, len(loads) * len(rounds))
    return Results(
        ensemble.name,
        ensemble.server_version,
        usable_cores().count,
        loads[0].batch_size,
        loads[0].requests,
        measurements,
    )


def _round(
    analyzer: "PerfAnalyzer", ensemble: "TritonEnsemble", load: "Load", what: str, targets: "list[Target]"
) -> "list[Measurement]":
    """Measure some models at the same time."""
    from coserve_cli.bench.results import ENSEMBLE, GATEWAY, Measurement
    from coserve_cli.bench.triton_target import Times

    before = ensemble.counts()
    latencies = analyzer.run(targets, load)
    after = ensemble.counts()
    times = {name: Times.between(before[name], after[name]) for name in after}
    of_target = {GATEWAY: {}, ENSEMBLE: times}
    return [
        Measurement(
            what,
            target.model,
            load.concurrency,
            result,
            of_target.get(what, {target.model: times.get(target.model, Times(0, 0))}),
        )
        for target, result in zip(targets, latencies, strict=True)
    ]
