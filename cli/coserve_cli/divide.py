"""`coserve divide`: what a division costs, before anything is trained."""

import json
from enum import Enum
from typing import Annotated

import typer


class DatasetName(str, Enum):
    """Data sets whose number of classes and image size are known by name."""

    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    IMAGENET = "imagenet"


def divide(
    network: Annotated[
        str, typer.Argument(help="The network to divide, e.g. wide_resnet28_10 or resnet110.")
    ],
    split: Annotated[int, typer.Option(help="Number of members, S.")] = 2,
    dataset: Annotated[DatasetName, typer.Option(help="Sets the number of classes and the image size.")] = (
        DatasetName.CIFAR10
    ),
    image_size: Annotated[int | None, typer.Option(min=8, help="Height and width in pixels.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show parameters and multiply-adds of a network and of the ensemble it is divided into."""
    from coserve_cli.errors import one_line
    from coserve_training.divide import DATASETS
    from coserve_training.divide import divide as divide_network
    from coserve_training.errors import TrainingError

    num_classes, usual_size = DATASETS[dataset.value]
    size = image_size or usual_size
    with one_line(TrainingError):
        division = divide_network(network, split, num_classes, size)
    if as_json:
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
        return
    rows = [
        (division.network, "undivided", division.undivided),
        (division.member_network, "one member", division.member),
        (f"{split} × {division.member_network}", "all members", division.total),
    ]
    width = max(len(name) for name, _, _ in rows)
    typer.echo(f"{num_classes} classes, {size}×{size} pixels")
    typer.echo(f"{'network':{width}}  {'':11}  {'parameters':>12}  {'multiply-adds':>14}")
    for name, what, cost in rows:
        parameters, multiply_adds = cost.parameters / 1e6, cost.multiply_adds / 1e9
        typer.echo(f"{name:{width}}  {what:11}  {parameters:>10.3f} M  {multiply_adds:>12.4f} G")
