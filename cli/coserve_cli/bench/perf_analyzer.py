"""`coserve bench perf-analyzer`."""

from pathlib import Path
from typing import Annotated

import typer


def perf_analyzer(
    repository: Annotated[
        Path | None, typer.Option(help="Start a Triton server that serves this model repository.")
    ] = None,
    triton: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="gRPC address of a running Triton server."),
    ] = None,
    gateway: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Also measure a coserve server, over HTTP.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="COSERVE_API_KEY",
            help="API key for the gateway. Other users of this machine can read it while perf_analyzer runs.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The ensemble. Optional if the server has only one.", show_default=False),
    ] = None,
    concurrency: Annotated[
        str, typer.Option(metavar="START[:END[:STEP]]", help="Numbers of requests in progress.")
    ] = "1:4",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.")] = 1,
    requests: Annotated[
        int, typer.Option(min=1, help="Minimum number of requests in each of a measurement's three windows.")
    ] = 100,
    binary: Annotated[
        Path | None,
        typer.Option(
            help="The perf_analyzer program.", show_default="installed by make perf-analyzer, or on PATH"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the results to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure an ensemble in Triton with NVIDIA's perf_analyzer.

    Measures each member alone, all members together and the ensemble, and compares concurrent members with
    the slowest of them alone. Ctrl-C prints the results so far.
    """
    if (repository is None) == (triton is None):
        raise typer.BadParameter("give either --repository or --triton")
    concurrencies = _range(concurrency)

    from coserve_bench.errors import BenchError
    from coserve_bench.output import OutputError, check_writable
    from coserve_bench.perf_analyzer.measure import check_gateway, measure, running_triton
    from coserve_bench.perf_analyzer.program import find_program
    from coserve_bench.perf_analyzer.results import Results
    from coserve_bench.perf_analyzer.run import Target
    from coserve_bench.perf_analyzer.target import connect
    from coserve_bench.stopping import noting_signals
    from coserve_cli.errors import one_line
    from coserve_cli.output import print_results
    from coserve_cli.progress import progress_bars
    from coserve_server.machine.cores import usable_cores
    from coserve_triton.errors import TritonError

    with one_line(BenchError, OutputError, TritonError, OSError):
        if output is not None:
            check_writable(output)
        program = find_program(binary)
        with (
            noting_signals(),
            running_triton(repository, triton, model) as address,
            connect(address, model) as ensemble,
        ):
            headers = (f"X-API-Key: {api_key}",) if api_key else ()
            target = Target(gateway, "http", ensemble.name, headers=headers) if gateway else None
            if target is not None:
                check_gateway(target)
            cores = usable_cores().count
            results = Results(ensemble.name, ensemble.server_version, cores, batch_size, requests)
            try:
                with progress_bars() as progress:
                    measure(results, ensemble, address, target, concurrencies, program, progress)
            finally:
                print_results(results.to_json(), results.table(), output, as_json)


def _range(text: str) -> list[int]:
    """Parse a range `start[:end[:step]]`, which includes both ends."""
    try:
        numbers = [int(part) for part in text.split(":")]
        start, end, step = numbers + [numbers[0], 1][len(numbers) - 1 :]
        levels = list(range(start, end + 1, step)) if step > 0 else []
    except ValueError:
        levels = []
    if not levels or levels[0] < 1:
        raise typer.BadParameter(f"{text!r} is not a range like 4, 1:4 or 2:8:2")
    return levels
