"""`coserve bench http`."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coserve_cli.server_options import URL, ApiKey, CaCert, Certificate, Key, Model, Url, client_certificate

if TYPE_CHECKING:
    from coserve_bench.http.loads import Load

CONCURRENCY = "1,8,32"
DAY_S = 86_400
HOUR_S = 3_600
LIBRARIES = ("httptools", "httpx", "numpy", "uvloop")


def http(
    image: Annotated[
        list[Path],
        typer.Option(metavar="FILE_OR_FOLDER", help="Images to send in turn; repeatable."),
    ],
    url: Url = URL,
    api_key: ApiKey = None,
    cacert: CaCert = None,
    certificate: Certificate = None,
    key: Key = None,
    model: Model = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Closed loops: numbers of requests that are always in progress.",
            show_default=f"{CONCURRENCY}; none with --rate",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R,…",
            help="Open loops: requests per second, sent at random times, however long responses take.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=DAY_S, help="Seconds to measure each load in each round.")
    ] = 2,
    warm_up: Annotated[
        float, typer.Option(min=0, max=DAY_S, help="Seconds before each measurement that do not count.")
    ] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the loads take turns.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, max=HOUR_S, help="Seconds to wait for a response.")] = 30,
    connections: Annotated[
        int, typer.Option(min=1, help="Maximum number of connections of an open loop.")
    ] = 256,
    repository: Annotated[
        Path | None,
        typer.Option(
            help="Also measure the ensemble of this model repository without a server: what the server adds "
            "to the engine's latency, and how much of its throughput it reaches."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the results to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the latency, throughput and failures of a running server over HTTP.

    Ctrl-C prints the results so far, and so does the loss of the server. Needs the extra bench; --repository
    also needs the extra server.
    """
    own = client_certificate(certificate, key)
    loads = _loads(concurrency, rate, connections)
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        typer.echo(f"error: {', '.join(missing)} not installed: pip install 'coserve[bench]'", err=True)
        raise typer.Exit(1)

    from coserve_bench.errors import BenchError
    from coserve_bench.http.gateway import Access, classification, first_reply
    from coserve_bench.http.generator import Generator
    from coserve_bench.http.images import read_images
    from coserve_bench.http.loads import Interval
    from coserve_bench.http.report import Report
    from coserve_bench.http.results import LoadResults
    from coserve_bench.http.table import table
    from coserve_bench.output import OutputError, check_writable
    from coserve_bench.stopping import noting_signals
    from coserve_cli.errors import one_line
    from coserve_cli.output import print_results
    from coserve_cli.progress import progress_bars
    from coserve_client import CoserveError
    from coserve_server.errors import StartupError
    from coserve_server.machine.cores import usable_cores

    with one_line(BenchError, OutputError, CoserveError, StartupError, OSError):
        if output is not None:
            check_writable(output)
        images = read_images(image)
        access = Access(url, api_key, cacert, own)
        reply = first_reply(access, model, images, timeout)
        engine = None
        if repository is not None:
            from coserve_bench.http.engine_alone import EngineAlone

            engine = EngineAlone(repository, reply.model)
        report = Report(
            url=url,
            model=reply.model,
            version=reply.version,
            images=len(images),
            image_bytes=sum(len(one.data) for one in images) / len(images),
            cores=usable_cores().count,
            rounds=rounds,
            interval=Interval(warm_up, seconds),
            loads=[LoadResults(load) for load in loads],
            engine=engine,
        )
        target = classification(access, reply.model, images, timeout)
        try:
            with noting_signals(), Generator(target) as generator, progress_bars() as progress:
                report.measure(generator, progress)
        finally:
            print_results(report.to_json(), table(report), output, as_json)


def _loads(concurrency: str | None, rate: str | None, connections: int) -> "list[Load]":
    """Return the closed loops, and then the open ones; the default closed loops without either option."""
    from coserve_bench.http.loads import ClosedLoop, OpenLoop

    if concurrency is None and rate is None:
        concurrency = CONCURRENCY
    closed = [ClosedLoop(int(number)) for number in _numbers(concurrency, "--concurrency", int)]
    opened = [OpenLoop(number, connections) for number in _numbers(rate, "--rate", float)]
    return [*closed, *opened]


def _numbers(text: str | None, option: str, kind: type[float]) -> list[float]:
    """Parse distinct positive numbers, and keep their order."""
    if text is None:
        return []
    try:
        numbers = list(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise typer.BadParameter(f"{option} {text!r}: give positive numbers, such as 1,8,32")
    return numbers
