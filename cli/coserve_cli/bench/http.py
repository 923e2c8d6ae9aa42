"""`coserve bench http`."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coserve_cli.server_options import URL, ApiKey, CaCert, Model, Url

if TYPE_CHECKING:
    from coserve_bench.http.engine import RawEngine
    from coserve_bench.http.loads import Load

CONCURRENCY = "1,8,32"
DAY_S, HOUR_S = 86_400, 3_600


def http(
    image: Annotated[
        list[Path],
        typer.Option(metavar="FILE_OR_FOLDER", help="Images to send in turn; may be repeated."),
    ],
    url: Url = URL,
    api_key: ApiKey = None,
    cacert: CaCert = None,
    model: Model = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Closed loop: so many requests in progress at any time.",
            show_default=f"{CONCURRENCY}, or none with --rate",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R,…", help="Open loop: so many requests a second, at random, however long answers take."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=DAY_S, help="Per load and round.")] = 2,
    warm_up: Annotated[
        float, typer.Option(min=0, max=DAY_S, help="Seconds before each that do not count.")
    ] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="How often every load gets its turn.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, max=HOUR_S, help="Seconds to wait for an answer.")] = 30,
    connections: Annotated[int, typer.Option(min=1, help="Of an open loop, at most.")] = 256,
    repository: Annotated[
        Path | None,
        typer.Option(help="Also run the ensemble of this model repository here, without a gateway."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file to write the results to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Load a running server over HTTP: latencies, throughput, failures, where the time goes.

    Ctrl-C gives the results so far, and so does a server that goes away. Needs the extra bench, and server
    for --repository.
    """
    loads = _loads(concurrency, rate, connections)
    _check_installed()

    from coserve_bench.errors import BenchError
    from coserve_bench.http.gateway import classification, first_reply
    from coserve_bench.http.generator import Generator
    from coserve_bench.http.images import read_images
    from coserve_bench.http.loads import Interval
    from coserve_bench.http.report import Report
    from coserve_bench.http.results import LoadResults
    from coserve_bench.http.table import table
    from coserve_bench.output import OutputError, check_writable, show
    from coserve_bench.stopping import stop_once
    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_client import CoserveError
    from coserve_server.errors import StartupError
    from coserve_server.machine.cores import usable_cores

    with one_line(BenchError, OutputError, CoserveError, StartupError, OSError):
        if output is not None:
            check_writable(output)
        images = read_images(image)
        reply = first_reply(url, api_key, cacert, model, images, timeout)
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
            engine=_engine(repository, reply.model),
        )
        target = classification(url, api_key, cacert, reply.model, images, timeout)
        stop_once()
        try:
            with Generator(target) as generator, progress_bars() as progress:
                report.measure(generator, progress)
        finally:
            show(json.dumps(report.to_json(), indent=2), table(report), output, as_json)


def _check_installed() -> None:
    missing = [name for name in ("httptools", "httpx", "numpy", "uvloop") if find_spec(name) is None]
    if missing:
        typer.echo(f"error: {', '.join(missing)} not installed: pip install 'coserve[bench]'", err=True)
        raise typer.Exit(1)


def _engine(repository: Path | None, model: str) -> "RawEngine | None":
    if repository is None:
        return None
    from coserve_bench.http.engine import RawEngine

    return RawEngine(repository, model)


def _loads(concurrency: str | None, rate: str | None, connections: int) -> "list[Load]":
    """Closed loops, then open ones; without either option the usual closed ones."""
    from coserve_bench.http.loads import ClosedLoop, OpenLoop

    if concurrency is None and rate is None:
        concurrency = CONCURRENCY
    users = [ClosedLoop(int(number)) for number in _numbers(concurrency, "--concurrency", int)]
    return [*users, *(OpenLoop(number, connections) for number in _numbers(rate, "--rate", float))]


def _numbers(text: str | None, option: str, kind: type[float]) -> list[float]:
    """Distinct positive numbers, in the order given."""
    if text is None:
        return []
    try:
        numbers = list(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise typer.BadParameter(f"{option} {text!r}: give positive numbers, such as 1,8,32")
    return numbers
