"""`coserve evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from coserve_cli.checkpoint import Checkpoint


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder written by coserve train.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Images with a test or val split; repeatable.", show_default="the data of the run"),
    ] = None,
    checkpoint: Annotated[
        Checkpoint, typer.Option(help="Use the last epoch, or the one with the highest test accuracy.")
    ] = Checkpoint.LAST,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit temperatures that calibrate the probabilities, and record them in the run for export.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate an ensemble and its members: accuracy, likelihood, calibration error, disagreement."""
    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_cli.scores import print_calibration, print_scores
    from coserve_training.errors import TrainingError
    from coserve_training.runs.calibrate import calibrate_run
    from coserve_training.runs.evaluate import evaluate_run
    from coserve_training.runs.folder import Description

    def report(line: str) -> None:
        typer.echo(line, err=True)

    with one_line(TrainingError), progress_bars() as progress:
        paths = data or [Path(path) for path in Description.read(run).config.data]
        if calibrate:
            evaluation, calibration, subsets = calibrate_run(run, paths, checkpoint.value, progress, report)
        else:
            evaluation = evaluate_run(run, paths, checkpoint.value, progress, report)
    if calibrate:
        print_calibration(evaluation, calibration, subsets, as_json)
    else:
        print_scores(evaluation, as_json)
