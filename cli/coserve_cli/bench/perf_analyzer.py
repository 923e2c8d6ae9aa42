"""`coserve bench perf-analyzer`."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from coserve_bench.perf_analyzer.results import Measurement, Results
    from coserve_bench.perf_analyzer.run import Load, PerfAnalyzer, Target
    from coserve_bench.perf_analyzer.target import TritonEnsemble

GATEWAY_TIMEOUT_S = 10


def _levels(text: str) -> list[int]:
    """Concurrency levels of `start:end[:step]`, both ends included."""
    try:
        numbers = [int(part) for part in text.split(":")]
        start, end, step = numbers + [numbers[0], 1][len(numbers) - 1 :]
        levels = list(range(start, end + 1, step)) if step > 0 else []
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

    Says how near members that run at once come to the slowest of them alone. Ctrl-C gives the results so far.
    """
    if (repository is None) == (triton is None):
        raise typer.BadParameter("give either --repository or --triton")
    levels = _levels(concurrency)

    from coserve_bench.errors import BenchError
    from coserve_bench.output import OutputError, check_writable, show
    from coserve_bench.perf_analyzer.results import Results
    from coserve_bench.perf_analyzer.run import Load, Target, find_program
    from coserve_bench.perf_analyzer.target import connect
    from coserve_bench.stopping import stop_once
    from coserve_cli.errors import one_line
    from coserve_server.machine.cores import usable_cores
    from coserve_triton.errors import TritonError

    with one_line(BenchError, OutputError, TritonError, OSError):
        if output is not None:
            check_writable(output)
        program = find_program(binary)
        stop_once()
        with _triton(repository, triton, model) as address, connect(address, model) as ensemble:
            headers = (f"X-API-Key: {api_key}",) if api_key else ()
            target = Target(gateway, "http", ensemble.name, headers=headers) if gateway else None
            if target is not None:
                _check_gateway(target)
            results = Results(
                ensemble.name, ensemble.server_version, usable_cores().count, batch_size, requests
            )
            try:
                loads = [Load(level, batch_size, requests) for level in levels]
                _measure(results, ensemble, address, target, loads, program)
            finally:
                show(json.dumps(results.to_json(), indent=2), results.table(), output, as_json)


@contextmanager
def _triton(repository: Path | None, address: str | None, model: str | None) -> Iterator[str]:
    """The gRPC address of the server given, or of one started for the repository."""
    if repository is None:
        assert address is not None
        yield address
        return
    from coserve_triton.server import Ports, run_triton

    options = ["--model-control-mode=explicit", f"--load-model={model}"] if model else []
    with run_triton(
        repository, lambda line: None, host="127.0.0.1", ports=Ports(), arguments=options
    ) as server:
        yield f"{server.host}:{server.ports.grpc}"


def _check_gateway(target: "Target") -> None:
    """Find out, before what takes long, whether the gateway has the ensemble."""
    from coserve_bench.errors import BenchError

    headers = dict(header.split(": ", 1) for header in target.headers)
    try:
        with closing(HTTPConnection(target.address, timeout=GATEWAY_TIMEOUT_S)) as connection:
            connection.request("GET", f"/v2/models/{quote(target.model)}", headers=headers)
            answer = connection.getresponse()
    except (OSError, HTTPException) as error:
        raise BenchError(f"the gateway at {target.address} does not answer: {error}") from error
    if answer.status != 200:
        what = f"answers {answer.status} {answer.reason} for {target.model}"
        raise BenchError(f"the gateway at {target.address} {what}")


def _measure(
    results: "Results",
    ensemble: "TritonEnsemble",
    address: str,
    gateway: "Target | None",
    loads: "list[Load]",
    program: Path,
) -> None:
    """Add to the results, measurement by measurement."""
    from coserve_bench.perf_analyzer.results import ALONE, ENSEMBLE, GATEWAY, TOGETHER
    from coserve_bench.perf_analyzer.run import PerfAnalyzer, Target
    from coserve_cli.progress import progress_bars

    members = [Target(address, "grpc", name, ensemble.versions[name]) for name in ensemble.members]
    rounds = [(ALONE, [member]) for member in members] + [(TOGETHER, members)]
    rounds.append((ENSEMBLE, [Target(address, "grpc", ensemble.name)]))
    if gateway is not None:
        rounds.append((GATEWAY, [gateway]))

    with progress_bars() as progress, PerfAnalyzer(program, ensemble.input_name, ensemble.shape) as analyzer:
        for done, (load, (what, targets)) in enumerate(product(loads, rounds), start=1):
            results.measurements += _round(analyzer, ensemble, load, what, targets)
            if progress is not None:
                progress("measuring", done, len(loads) * len(rounds))
    results.complete = True


def _round(
    analyzer: "PerfAnalyzer", ensemble: "TritonEnsemble", load: "Load", what: str, targets: "list[Target]"
) -> "list[Measurement]":
    """Measure some models at the same time."""
    from coserve_bench.perf_analyzer.results import ENSEMBLE, GATEWAY, Measurement
    from coserve_bench.perf_analyzer.target import Times

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
