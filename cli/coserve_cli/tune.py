"""`coserve tune`."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coserve_server.ensembles import Ensemble
    from coserve_server.tuning import Evaluation, Measured


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
    loaded, and measured in turn. Run it on a machine that does nothing else.
    """
    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_export.errors import ExportError
    from coserve_server.cores import usable_cores
    from coserve_server.errors import SettingsError, StartupError
    from coserve_server.repository import read_repository
    from coserve_server.tuning import (
        best,
        candidates,
        comparable,
        installed_engines,
        measure,
        measure_top1,
        variants,
    )

    cores = usable_cores()
    with one_line(StartupError, ExportError), progress_bars() as progress:
        if output is not None and output.exists() and not overwrite:
            raise SettingsError([f"{output} exists; --overwrite replaces it"])
        served = read_repository(repository)
        if unknown := [name for name in model if name not in served]:
            raise SettingsError([f"{', '.join(unknown)} is not in {repository}; it has {', '.join(served)}"])
        ways = variants([served[name] for name in model], engine or installed_engines())
        if evaluation_data:
            ways = measure_top1(ways, cores, read_evaluation(evaluation_data, served[model[0]]), progress)
        ways, left_out = comparable(ways, max_accuracy_loss)
        measured = measure(candidates(ways, cores), cores, rounds=rounds, progress=progress)
        chosen = best(measured, goal.value)
        settings = _settings(repository, chosen)
        if output is not None:
            _write(output, settings)
    if as_json:
        rows = [_row(one) for one in measured]
        content = {"goal": goal.value, "choice": settings, "measured": rows, "left_out": left_out}
        typer.echo(json.dumps(content, indent=2))
        return
    _print(measured, chosen, left_out)
    typer.echo(_toml(settings), nl=False)
    if output is not None:
        typer.echo(f"written to {output}; coserve serve --config {output}")


def read_evaluation(paths: list[Path], ensemble: "Ensemble") -> "Evaluation":
    """Labelled images of a test split, as the ensemble's networks take them.

    Raises:
        coserve_export.errors.ExportError: there are no such images, or they are of other classes; also later,
            where an image of a batch cannot be decoded.
    """
    from coserve_export.ensemble import Preprocessing
    from coserve_export.labelled import read_labelled
    from coserve_server.tuning import Evaluation

    preprocessing = Preprocessing.from_json(ensemble.preprocessing.model_dump())
    images = read_labelled(paths, ["test"], ensemble.labels, preprocessing)
    return Evaluation(images.batches(), images.targets)


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


def _write(file: Path, settings: dict[str, Any]) -> None:
    from coserve_server.errors import SettingsError

    staging = file.with_name(f".{file.name}.new")
    try:
        staging.write_text("# Chosen by coserve tune.\n" + _toml(settings), "utf-8")
        staging.replace(file)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise SettingsError([f"{file} cannot be written: {error.strerror or error}"]) from error


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


def _print(measured: list["Measured"], chosen: "Measured", left_out: dict[str, str]) -> None:
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
            f"{'  <- chosen' if way == chosen.candidate else ''}"
        )
    for name, reason in left_out.items():
        typer.echo(f"left out: {name}, {reason}")
