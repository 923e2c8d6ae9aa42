"""`coserve evaluate`."""

from dataclasses import asdict
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
        Checkpoint,
        typer.Option(
            help="Use the last epoch, or the one with the highest accuracy on val/ (without one, on test/)."
        ),
    ] = Checkpoint.LAST,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit temperatures, prediction sets and early stopping; record them in the run for export.",
        ),
    ] = False,
    confusion_matrix: Annotated[
        Path | None,
        typer.Option(help="Write the numbers of images by class and predicted class: a .csv or .png file."),
    ] = None,
    ood: Annotated[
        list[Path] | None,
        typer.Option(
            help="Out-of-distribution images, to compare with the test images: a folder or zip, labelled "
            "or not; repeatable."
        ),
    ] = None,
    corrupt: Annotated[
        bool,
        typer.Option(
            "--corrupt",
            help="Score corrupted copies of the test images: fifteen corruptions after CIFAR-10-C (frost is "
            "drawn, not photographed), each of five severities.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Use at most this number of images for --corrupt and from each --ood, evenly spaced."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate an ensemble and its members: accuracy, likelihood, calibration error, disagreement, doubt."""
    from coserve_cli.assessment import print_assessment
    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_cli.scores import print_calibration, print_scores
    from coserve_training.doubt.assess import assess, read_others
    from coserve_training.errors import TrainingError
    from coserve_training.memory import keep_memory
    from coserve_training.runs.calibrate import calibrate_outputs
    from coserve_training.runs.classes import ConfusionMatrix, check_matrix_file
    from coserve_training.runs.evaluate import held_out_logits

    if limit is not None and not (ood or corrupt):
        raise typer.BadParameter("it limits --corrupt and --ood; give one of them", param_hint="--limit")

    def report(line: str) -> None:
        typer.echo(line, err=True)

    keep_memory()
    with one_line(TrainingError), progress_bars() as progress:
        if confusion_matrix is not None:
            check_matrix_file(confusion_matrix)
        others = read_others(run, ood or (), limit, progress, report)
        loaded, test, val = held_out_logits(
            run, data, checkpoint.value, progress, report, calibrating=calibrate
        )
        matrix = ConfusionMatrix.count(test.logits.mean(0), test.targets, loaded.labels)
        if confusion_matrix is not None:
            matrix.write(confusion_matrix)
        if calibrate:
            evaluation, calibration, subsets = calibrate_outputs(
                run, loaded, test, val, checkpoint.value, progress
            )
        else:
            evaluation = test.score()
        assessment = assess(
            run, loaded, test, others, corrupted=corrupt, limit=limit, progress=progress, report=report
        )
    doubt = asdict(assessment)
    if calibrate:
        print_calibration(evaluation, calibration, subsets, as_json, matrix, doubt)
    else:
        print_scores(evaluation, as_json, matrix, doubt)
    if not as_json:
        print_assessment(assessment)
