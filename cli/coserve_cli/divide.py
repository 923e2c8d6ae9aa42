"""`coserve divide`."""

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coserve_training.counting import DividedCost


class DatasetName(str, Enum):
    """Data sets with a known number of classes and image size."""

    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    IMAGENET = "imagenet"


def divide(
    context: typer.Context,
    network: Annotated[
        str | None, typer.Argument(help="The network to divide, e.g. wide_resnet28_10 or resnet110.")
    ] = None,
    split: Annotated[int, typer.Option(help="Number of members, S.")] = 2,
    dataset: Annotated[DatasetName, typer.Option(help="Sets the number of classes and the image size.")] = (
        DatasetName.CIFAR10
    ),
    image_size: Annotated[
        int | None,
        typer.Option(min=8, max=65536, help="Height and width in pixels; by default the data set's."),
    ] = None,
    table: Annotated[
        DatasetName | None, typer.Option(help="Show every row of the paper's table for a data set instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the parameters and multiply-adds of a network and of the members it is divided into."""
    if table is not None:
        _refuse_other_options(context)
        from coserve_cli.paper_table import print_table

        return print_table(table.value, as_json)
    if network is None:
        raise typer.BadParameter("give a NETWORK, or --table for the paper's rows")

    from coserve_cli.errors import one_line
    from coserve_training.counting import DATASETS, cost
    from coserve_training.errors import TrainingError

    num_classes, usual_size = DATASETS[dataset.value]
    size = image_size or usual_size
    with one_line(TrainingError):
        division = cost(network, split, num_classes, size)
    if as_json:
        return _print_json(division, num_classes, size)
    return _print_rows(division, num_classes, size)


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options that the table sets."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in ("table", "as_json"):
            shown = parameter.opts[0] if parameter.param_type_name == "option" else "NETWORK"
            raise typer.BadParameter(f"--table shows the paper's own rows; leave out {shown}")


def _print_json(division: "DividedCost", num_classes: int, size: int) -> None:
    content = {
        "network": division.network,
        "split": division.split,
        "member_network": division.member_network,
        "image_size": size,
        "classes": num_classes,
        "member_parameters": division.member.parameters,
        "parameters": division.total.parameters,
        "member_multiply_adds": division.member.multiply_adds,
        "multiply_adds": division.total.multiply_adds,
        "undivided_parameters": division.undivided.parameters,
        "undivided_multiply_adds": division.undivided.multiply_adds,
    }
    typer.echo(json.dumps(content, indent=2))


def _print_rows(division: "DividedCost", num_classes: int, size: int) -> None:
    rows = [
        (division.network, "undivided", division.undivided),
        (division.member_network, "one member", division.member),
        (f"{division.split} × {division.member_network}", "all members", division.total),
    ]
    width = max(len(name) for name, _, _ in rows)
    typer.echo(f"{num_classes} classes, {size}×{size} pixels")
    typer.echo(f"{'network':{width}}  {'':11}  {'parameters':>12}  {'multiply-adds':>14}")
    for name, what, cost in rows:
        parameters = cost.parameters / 1e6
        multiply_adds = cost.multiply_adds / 1e9
        typer.echo(f"{name:{width}}  {what:11}  {parameters:>10.3f} M  {multiply_adds:>12.4f} G")
