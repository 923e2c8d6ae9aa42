"""`coserve tune`."""

import asyncio
import json
import logging
import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coserve_bench.tune import Candidate, Evaluation, Measured
    from coserve_server.ensembles.ensemble import Ensemble
    from coserve_server.machine.cores import Cores


class Goal(str, Enum):
    """What counts."""

    latency = "latency"
    throughput = "throughput"


def tune(
    repository: Annotated[Path, typer.Option(metavar="DIR", help="The model repository.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="The ensemble; repeated, others that may take its place, such as the same in int8."
        ),
    ],
    goal: Annotated[
        Goal, typer.Option(help="The soonest answer to one image, or the most images per second.")
    ] = Goal.throughput,
    max_accuracy_loss: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="Of top-1 accuracy against the first model, as measured on the evaluation data, else as the "
            "repository says.",
        ),
    ] = 0.3,
    evaluation_data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Images with a test split, in any form coserve train takes, to measure accuracy on; "
            "repeatable. Needed for bf16, whose accuracy no export records.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to try; repeatable, by default those installed.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="In which all candidates take turns.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Write the choice as a file for coserve serve --config."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the engine, the ensemble, the threads and the batch size that serve best on this machine.

    With openvino, networks of fp32 are also computed in bf16 where the processor can. All candidates are
    loaded, and measured in turn; Ctrl-C gives the measurements so far, and no choice. Run it on a machine
    that does nothing else.
    """
    if not (math.isfinite(max_accuracy_loss) and max_accuracy_loss >= 0):
        raise typer.BadParameter(f"--max-accuracy-loss {max_accuracy_loss}: give points from 0 on")

    from coserve_bench.output import OutputError, check_writable, write_whole
    from coserve_bench.stopping import stop_once
    from coserve_bench.tune import (
        Interrupted,
        best,
        candidates,
        comparable,
        installed_engines,
        measure,
        measure_top1,
        variants,
    )
    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_export.errors import ExportError
    from coserve_server.ensembles.repository import read_repository
    from coserve_server.errors import SettingsError, StartupError
    from coserve_server.machine.cores import usable_cores

    # Members that Ctrl-C stops would be reported as failed.
    logging.getLogger("coserve_server").addHandler(logging.NullHandler())
    stop_once()
    cores = usable_cores()
    with one_line(StartupError, ExportError, OutputError):
        if output is not None:
            check_writable(output)
            if output.exists() and not overwrite:
                raise OutputError(f"{output} exists; --overwrite replaces it")
        served = read_repository(repository)
        if unknown := [name for name in model if name not in served]:
            raise SettingsError([f"{', '.join(unknown)} is not in {repository}; it has {', '.join(served)}"])
        ensembles = [served[name] for name in dict.fromkeys(model)]
        with progress_bars() as progress:
            ways = variants(ensembles, list(dict.fromkeys(engine or installed_engines())))
            ways, unloadable = _loadable(ways, cores)
            if evaluation_data:
                ways = measure_top1(ways, cores, read_evaluation(evaluation_data, ensembles[0]), progress)
            ways, left_out = comparable(ways, max_accuracy_loss)
            try:
                measured = measure(candidates(ways, cores), cores, rounds=rounds, progress=progress)
                chosen = best(measured, goal.value)
            except Interrupted as interrupted:
                measured, chosen = interrupted.args[0], None
        settings = None if chosen is None else _settings(repository, chosen)
        _show(goal, measured, chosen, settings, unloadable | left_out, as_json)
        if settings is None:
            raise typer.Exit(130)
        if output is not None:
            write_whole(output, f"# Chosen by coserve tune.\n{_toml(settings)}")
            if not as_json:
                typer.echo(f"written to {output}; coserve serve --config {output}")


def read_evaluation(paths: list[Path], ensemble: "Ensemble") -> "Evaluation":
    """Labelled images of a test split, as the ensemble's networks take them.

    Raises:
        coserve_export.errors.ExportError: there are no such images, or they are of other classes; also later,
            where an image of a batch cannot be decoded.
    """
    from coserve_bench.tune import Evaluation
    from coserve_export.ensemble import Preprocessing
    from coserve_export.labelled import read_labelled

    preprocessing = Preprocessing.from_json(ensemble.preprocessing.model_dump())
    images = read_labelled(paths, ["test"], ensemble.labels, preprocessing)
    return Evaluation(images.batches(), images.targets)


def _loadable(ways: list["Candidate"], cores: "Cores") -> tuple[list["Candidate"], dict[str, str]]:
    """Those that their engines can load, and why the others cannot be, by name.

    Raises:
        EngineError: none of the first ensemble can, with which the others are compared.
    """
    from coserve_server.errors import EngineError

    left_out = {way.name: fault for way in ways if (fault := _fault(way, cores))}
    if all(way.name in left_out for way in ways if way.ensemble is ways[0].ensemble):
        raise EngineError(left_out[ways[0].name])
    return [way for way in ways if way.name not in left_out], left_out


def _fault(way: "Candidate", cores: "Cores") -> str | None:
    """Why its engine cannot load it; None if it can."""
    from coserve_server.engines.factory import create_engine
    from coserve_server.errors import EngineError

    try:
        asyncio.run(create_engine(way.choice, cores, {way.ensemble.name: way.ensemble}).close())
    except EngineError as error:
        return str(error)
    return None


def _settings(repository: Path, chosen: "Measured") -> dict[str, Any]:
    """As `coserve serve` reads them."""
    way, choice = chosen.candidate, chosen.candidate.choice
    settings: dict[str, Any] = {
        "repository": str(repository),
        "default_model": way.ensemble.name,
        "engine": choice.engine,
        "member_threads": choice.threads,
        "pin_members": choice.pinned,
    }
    if choice.engine == "openvino":
        settings["openvino_precision"] = choice.precision
    # Batches of one would leave nothing for many requests at once to share.
    return settings if chosen.batch_size == 1 else settings | {"max_batch_size": chosen.batch_size}


def _toml(settings: dict[str, Any]) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


def _show(
    goal: Goal,
    measured: list["Measured"],
    chosen: "Measured | None",
    settings: dict[str, Any] | None,
    left_out: dict[str, str],
    as_json: bool,
) -> None:
    if as_json:
        rows = [_row(one) for one in measured]
        complete = settings is not None
        content = {"goal": goal.value, "complete": complete, "choice": settings, "measured": rows}
        typer.echo(json.dumps(content | {"left_out": left_out}, indent=2))
        return
    _print(measured, chosen, left_out)
    typer.echo("interrupted: nothing is chosen\n" if settings is None else _toml(settings), nl=False)


def _row(one: "Measured") -> dict[str, Any]:
    way = one.candidate
    return {
        "model": way.ensemble.name,
        "engine": way.choice.engine,
        "precision": way.precision,
        "top1": way.top1,
        "threads": way.choice.threads,
        "pinned": way.choice.pinned,
        "batch_size": one.batch_size,
        "batch_ms": round(one.batch_ms, 3),
        "images_per_s": round(one.images_per_s, 1),
    }


def _print(measured: list["Measured"], chosen: "Measured | None", left_out: dict[str, str]) -> None:
    """One line for each candidate: an image alone, and its best batch size."""
    names = max(len(one.candidate.ensemble.name) for one in measured)
    typer.echo(f"{'model':{names}}  engine       precision   top-1  threads  pinned  1 image    best")
    for way in dict.fromkeys(one.candidate for one in measured):
        found = [one for one in measured if one.candidate == way]
        alone = next(f"{one.batch_ms:6.2f} ms" for one in found if one.batch_size == 1)
        top = max(found, key=lambda one: one.images_per_s)
        pinned = "yes" if way.choice.pinned else "no"
        accuracy = "" if way.top1 is None else f"{way.top1:.2%}"
        typer.echo(
            f"{way.ensemble.name:{names}}  {way.choice.engine:11}  {way.precision:9}  {accuracy:>6}  "
            f"{way.choice.threads:7}  {pinned:6}  {alone}  "
            f"{top.images_per_s:.0f} images/s in batches of {top.batch_size}"
            f"{'  <- chosen' if chosen is not None and way == chosen.candidate else ''}"
        )
    for name, reason in left_out.items():
        typer.echo(f"left out: {name}, {reason}")
