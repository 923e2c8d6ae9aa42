"""How training and evaluation show an ensemble's scores."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from coserve_training.evaluate import Evaluation


def print_scores(evaluation: "Evaluation", as_json: bool) -> None:
    """One row for the ensemble and one per member, or JSON."""
    if as_json:
        typer.echo(json.dumps(asdict(evaluation), indent=2))
        return
    images = f"{evaluation.images} images"
    typer.echo(f"{images}  {'top-1':>9}  {'top-5':>9}  {'NLL':>8}  {'ECE':>8}")
    rows = [("ensemble", evaluation.ensemble)]
    rows += [(f"member {index}", scores) for index, scores in enumerate(evaluation.members)]
    for name, scores in rows:
        accuracy = f"{scores.top1:>9.2%}  {scores.top5:>9.2%}"
        typer.echo(f"{name:{len(images)}}  {accuracy}  {scores.nll:>8.4f}  {scores.ece:>8.4f}")
