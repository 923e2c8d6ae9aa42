"""`coserve train`."""

import inspect
import os
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from coserve_training.config import TrainConfig
from coserve_training.options import Help


def train(
    output: Annotated[Path, typer.Option(help="Run folder to write: configuration, metrics, checkpoints.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Images: a folder or zip with train/<class>/*, val/<class>/* and test/<class>/*, ImageNet, "
            "the official CIFAR or SVHN files, or cifar10, cifar100 or svhn to download them. Repeat it to "
            "join several sources.",
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="The network to divide, such as wide_resnet28_10.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The paper's cifar, cifar-long, svhn, imagenet or efficientnet; Coserve's own cifar-fast "
            "or quick; or a .toml file. The options below override it.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume after the last finished epoch of --output.")
    ] = False,
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on CPUs, per node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; run this command on each of them.")] = 1,
    place_members: Annotated[
        bool,
        typer.Option(
            "--place-members", help="Give each device a member to train, instead of a share of each batch."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read and augment images.", show_default="one per core"),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final scores as JSON.")] = False,
    **options: Any,
) -> None:
    """Divide a network, train its members together, and write a run folder."""
    if not resume and not (data and network):
        raise typer.BadParameter("give --data and --network, or --resume to resume a run")
    # Make paths absolute, so that the run can be resumed and evaluated anywhere; names of data sets stay.
    sources = tuple(str(Path(path).absolute()) if os.path.lexists(path) else path for path in data or ())
    if options.get("initial") is not None:
        options["initial"] = str(Path(options["initial"]).absolute())
    given = {"data": sources or None, "network": network, **options}
    given = {name: value for name, value in given.items() if value is not None}

    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_cli.scores import print_scores
    from coserve_training.errors import CorruptImagesError, TrainingError

    def report(line: str) -> None:
        typer.echo(line, err=as_json)

    hints: dict[type[Exception], str] = {CorruptImagesError: ", or leave them out with --skip-corrupt"}
    try:
        with one_line(TrainingError, hints=hints), progress_bars() as progress:
            config = _config(output, recipe, resume, given, report)
            # Imported after the checks, because it takes seconds.
            from coserve_training.memory import keep_memory
            from coserve_training.training_run import train as train_run

            keep_memory()
            evaluation = train_run(
                config,
                output,
                resume=resume,
                devices=devices,
                nodes=nodes,
                place_members=place_members,
                workers=workers,
                tensorboard=tensorboard,
                report=report,
                progress=progress,
            )
    except KeyboardInterrupt:
        hint = f"; resume with: coserve train --output {shlex.quote(str(output))} --resume"
        begun = os.path.lexists(output / "config.json")
        typer.echo(f"interrupted{hint if begun else ' before anything was written'}", err=True)
        raise typer.Exit(130) from None
    if evaluation is not None:
        print_scores(evaluation, as_json)


def _config(
    output: Path, recipe: str | None, resume: bool, given: dict[str, Any], report: Callable[[str], None]
) -> TrainConfig:
    if resume:
        from coserve_training.runs.extend import resumed_config

        return resumed_config(output, given, recipe)
    if recipe is None:
        return TrainConfig.from_json(given)

    from coserve_training.recipes import with_recipe

    return TrainConfig.from_json(with_recipe(recipe, given, report))


def _options() -> list[inspect.Parameter]:
    """Return an option for each field of the configuration that has a help text."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    options = []
    for field in fields(TrainConfig):
        about = [help_ for help_ in get_args(hints[field.name])[1:] if isinstance(help_, Help)]
        if about:
            default = "" if field.default is None else f" Default: {_shown(field.default)}."
            plain = _plain(hints[field.name])
            # Typer's own are so wide that the names of options are cut off in a terminal of 80 columns.
            metavar = "" if plain is bool else None
            values = ""
            if get_origin(plain) is tuple:
                metavar = {2: "MIN MAX", 3: "R G B"}[len(get_args(plain))]
            elif get_origin(plain) is Literal:
                metavar = "VALUE"
                values = f" Values: {', '.join(get_args(plain))}."
            option = typer.Option(
                help=about[0].text + values + default, rich_help_panel=about[0].group, metavar=metavar
            )
            annotation = Annotated[plain | None, option]  # type: ignore[valid-type]
            options.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
                )
            )
    return options


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)


def _plain(hint: Any) -> Any:
    """Return a type without its bounds, which the configuration checks itself."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    alternatives = [_plain(part) for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is tuple:
        return tuple[tuple(alternatives)]  # type: ignore[misc]
    return alternatives[0] if type(None) in get_args(hint) else hint


_signature = inspect.signature(train)
_added = _options()
_fixed = [p for p in _signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
train.__signature__ = _signature.replace(parameters=[*_fixed, *_added])  # type: ignore[attr-defined]
train.__annotations__ |= {option.name: option.annotation for option in _added}
