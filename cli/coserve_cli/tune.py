"""`coserve tune`."""

import json
import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Goal(str, Enum):
    """What to optimise."""

    latency = "latency"
    throughput = "throughput"


def tune(
    repository: Annotated[Path, typer.Option(metavar="DIR", help="The model repository.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="The ensemble to tune. Repeat it to add alternatives, such as the same ensemble in int8."
        ),
    ],
    goal: Annotated[
        Goal, typer.Option(help="Minimise the latency of one image, or maximise images per second.")
    ] = Goal.throughput,
    max_accuracy_loss: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="Top-1 accuracy, in percentage points, that a choice may lose against the first model. "
            "Accuracies are measured on --evaluation-data, or else read from the repository.",
        ),
    ] = 0.3,
    evaluation_data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Images with a test split, in any form that coserve train accepts, to measure accuracy on; "
            "repeatable. Required to try bf16, whose accuracy is not recorded by an export.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to try; repeatable.", show_default="all that are installed"),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of measurements; candidates take turns in each.")
    ] = 5,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Write the choice to a file for coserve serve --config."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the engine, ensemble, workers, threads and batch size that serve best on this machine.

    With openvino, fp32 networks are also tried in bf16 if the processor supports it. For throughput, several
    workers with few threads per member are compared with one that has all cores; here they share a process,
    and requests over the network are not counted. All candidates are loaded and measured in turn. Ctrl-C
    prints the measurements so far, without a choice. Run it on an idle machine.
    """
    if not (math.isfinite(max_accuracy_loss) and max_accuracy_loss >= 0):
        raise typer.BadParameter(f"--max-accuracy-loss {max_accuracy_loss}: give points, 0 or more")

    from coserve_bench.errors import BenchError
    from coserve_bench.output import OutputError, check_writable, write_whole
    from coserve_bench.stopping import noting_signals
    from coserve_bench.tune.choose import Request, choose
    from coserve_bench.tune.table import table
    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_export.errors import ExportError
    from coserve_server.errors import StartupError

    request = Request(
        repository=repository,
        models=model,
        goal=goal.value,
        max_accuracy_loss=max_accuracy_loss,
        evaluation_data=evaluation_data or (),
        engines=engine or (),
        rounds=rounds,
    )
    with noting_signals(), one_line(BenchError, StartupError, ExportError, OutputError):
        if output is not None:
            check_writable(output)
            if output.exists() and not overwrite:
                raise OutputError(f"{output} exists; --overwrite replaces it")
            _check_utf8(repository, output)
        with progress_bars() as progress:
            report = choose(request, progress)
        typer.echo(json.dumps(report.to_json(), indent=2) if as_json else "\n".join(table(report)))
        if report.chosen is None:
            raise typer.Exit(130)
        if output is not None:
            write_whole(output, f"# Chosen by coserve tune.\n{report.to_toml()}")
            if not as_json:
                typer.echo(f"written to {output}; coserve serve --config {output}")


def _check_utf8(repository: Path, output: Path) -> None:
    from coserve_bench.output import OutputError

    try:
        str(repository).encode("utf-8")
    except UnicodeEncodeError as error:
        raise OutputError(f"{output} cannot name the repository, whose path is not UTF-8") from error
