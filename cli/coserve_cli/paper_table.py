"""Prints the paper's figures beside ours, for `coserve divide --table`."""

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from coserve_training.counting import Cost
    from coserve_training.paper import PaperRow


def print_table(table: str, as_json: bool) -> None:
    """Print each row of the paper as soon as it is counted, and then the notes, or JSON."""
    from coserve_training.counting import count
    from coserve_training.networks import member_network
    from coserve_training.paper import paper_rows

    rows = paper_rows(table)
    width = max(len(row.network) for row in rows)
    if not as_json:
        typer.echo(
            "All members together: parameters in millions; multiply-adds in billions, of convolutions,\n"
            "linear layers, batch norms (two per element) and average pools (one). Top-1 errors in %\n"
            "are the paper's."
        )
        counts = f"{'parameters':>10} {'paper':>6} {'':>7}  {'multiply-adds':>13} {'paper':>5} {'':>7}"
        typer.echo(f"{'network':{width}}  S  {'pixels':>6}  {counts}  {'error':>5}  {'epochs':>6}")
    counted = []
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    for row in rows:
        member = member_network(row.network, row.split, image_size=row.image_size)
        cost = count(member, row.num_classes, row.image_size).times(row.split)
        counted.append(_content(row, cost))
        if not as_json:
            mark = f"  [{notes.index(row.note) + 1}]" if row.note else ""
            typer.echo(f"{row.network:{width}}  {_line(row, cost)}{mark}")
    if as_json:
        typer.echo(json.dumps(counted, indent=2))
    for number, note in enumerate(() if as_json else notes, 1):
        typer.echo(f"[{number}] {note}")


def _line(row: "PaperRow", cost: "Cost") -> str:
    parameters = _against(cost.parameters / 1e6, row.parameters, "10.3f", 6)
    multiply_adds = _against(cost.multiply_adds / 1e9, row.multiply_adds, "13.4f", 5)
    error = _shown(row.top1_error)
    epochs = _shown(row.epochs)
    return f"{row.split}  {row.image_size:>6}  {parameters}  {multiply_adds}  {error:>5}  {epochs:>6}"


def _against(ours: float, paper: Decimal | None, form: str, width: int) -> str:
    more = "" if paper is None else f"{ours / float(paper) - 1:+.1%}"
    return f"{ours:{form}} {_shown(paper):>{width}} {more:>7}"


def _shown(figure: object) -> str:
    return "-" if figure is None else str(figure)


def _content(row: "PaperRow", cost: "Cost") -> dict[str, object]:
    return {
        "network": row.network,
        "split": row.split,
        "classes": row.num_classes,
        "image_size": row.image_size,
        "parameters": cost.parameters,
        "paper_parameters": _units(row.parameters, 6),
        "parameters_difference_percent": _percent(cost.parameters, row.parameters, 6),
        "multiply_adds": cost.multiply_adds,
        "paper_multiply_adds": _units(row.multiply_adds, 9),
        "multiply_adds_difference_percent": _percent(cost.multiply_adds, row.multiply_adds, 9),
        "paper_top1_error_percent": None if row.top1_error is None else float(row.top1_error),
        "paper_epochs": row.epochs,
        "note": row.note or None,
    }


def _units(figure: Decimal | None, exponent: int) -> int | None:
    return None if figure is None else int(figure.scaleb(exponent))


def _percent(ours: int, figure: Decimal | None, exponent: int) -> float | None:
    paper = _units(figure, exponent)
    return None if paper is None else round(100 * (ours / paper - 1), 2)
