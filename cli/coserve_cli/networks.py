"""`coserve networks`."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from coserve_cli.divide import DatasetName

if TYPE_CHECKING:
    from coserve_training.counting import Cost

Row = tuple[str, int, int, "Cost"]
"""Network, number of classes, image size in pixels, and cost."""


def networks(
    dataset: Annotated[
        DatasetName | None,
        typer.Option(help="List only networks for this data set.", show_default="cifar10 and imagenet"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List example networks of every family, undivided, with their parameters and multiply-adds."""
    from coserve_cli.errors import one_line
    from coserve_training.errors import TrainingError

    datasets = ["cifar10", "imagenet"] if dataset is None else [dataset.value]
    with one_line(TrainingError):
        rows = (row for name in datasets for row in _counted(name))
        if as_json:
            typer.echo(json.dumps([_content(row) for row in rows], indent=2))
            return
        typer.echo(f"{'network':22}  classes  pixels  {'parameters':>11}  {'multiply-adds':>13}")
        for network, classes, size, cost in rows:
            counts = f"{cost.parameters / 1e6:>9.3f} M  {cost.multiply_adds / 1e9:>11.4f} G"
            typer.echo(f"{network:22}  {classes:>7}  {size:>6}  {counts}")


def _counted(dataset: str) -> Iterator[Row]:
    """Count the example networks of every family."""
    from coserve_training.counting import DATASETS, count
    from coserve_training.networks import families, member_network

    classes, size = DATASETS[dataset]
    for family in families():
        for name in family.imagenet_examples if dataset == "imagenet" else family.cifar_examples:
            yield name, classes, size, count(member_network(name, 1, image_size=size), classes, size)


def _content(row: Row) -> dict[str, object]:
    network, classes, size, cost = row
    return {
        "network": network,
        "classes": classes,
        "image_size": size,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
    }
