"""Prints the scores of an ensemble, after training and evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from types import MappingProxyType
from typing import TYPE_CHECKING

import typer

from coserve_cli.output import print_list, print_wrapped

if TYPE_CHECKING:
    from coserve_training.runs.calibrate import Calibration, Subset
    from coserve_training.runs.classes import ConfusionMatrix
    from coserve_training.runs.early_stopping import EarlyStopping
    from coserve_training.runs.evaluate import Evaluation
    from coserve_training.runs.prediction_sets import Lac, PredictionSets, Raps


SPLITS = {
    "test": "the test split",
    "val": "the val split; there is no test split",
    "held-out": "training images that were held out; there is no test split",
}
WORST = 5
"""Largest number of classes and of confusions in the summary."""


def print_scores(
    evaluation: "Evaluation",
    as_json: bool,
    matrix: "ConfusionMatrix | None" = None,
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Print a row for the ensemble and a row for each member, and the worst classes, or JSON with `more`."""
    if as_json:
        typer.echo(json.dumps({**asdict(evaluation), **_by_class(matrix), **more}, indent=2))
        return
    images = f"{evaluation.images} images"
    typer.echo(f"{images}  {'top-1':>9}  {'top-5':>9}  {'NLL':>8}  {'ECE':>8}")
    rows = [("ensemble", evaluation.ensemble)]
    rows += [(f"member {index}", scores) for index, scores in enumerate(evaluation.members)]
    for name, scores in rows:
        accuracy = f"{scores.top1:>9.2%}  {scores.top5:>9.2%}"
        typer.echo(f"{name:{len(images)}}  {accuracy}  {scores.nll:>8.4f}  {scores.ece:>8.4f}")
    if len(evaluation.members) > 1:
        typer.echo(
            f"members disagree on {evaluation.disagreement:.2%} of the images, "
            f"two of them on {evaluation.pairwise_disagreement:.2%}"
        )
    if evaluation.split is not None:
        typer.echo(f"scored on {SPLITS[evaluation.split]}")
    if matrix is not None:
        _print_worst(matrix)


def _by_class(matrix: "ConfusionMatrix | None") -> dict[str, object]:
    if matrix is None:
        return {}
    return {
        "balanced_accuracy": matrix.balanced_accuracy,
        "classes": [asdict(one) for one in matrix.classes],
        "confusions": [asdict(pair) for pair in matrix.confusions],
    }


def _print_worst(matrix: "ConfusionMatrix") -> None:
    """Print the mean recall, the classes of lowest recall, and the most frequent confusions."""
    typer.echo(f"mean recall of the classes {matrix.balanced_accuracy:.2%}")
    found = [(one.recall, one) for one in matrix.classes if one.recall is not None and one.recall < 1]
    worst = sorted(found, key=lambda pair: pair[0])[:WORST]
    if worst:
        print_list("lowest recall", (f"{one.label} {recall:.2%} of {one.images}" for recall, one in worst))
        confused = matrix.confusions[:WORST]
        print_list("most confused", (f"{one.actual} as {one.predicted} {one.images}" for one in confused))


def print_calibration(
    evaluation: "Evaluation",
    calibration: "Calibration",
    subsets: Sequence["Subset"],
    as_json: bool,
    matrix: "ConfusionMatrix | None" = None,
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Print scores, temperatures, prediction sets and early stopping in a table each, or JSON with `more`."""
    if as_json:
        content = {"subsets": [asdict(subset) for subset in subsets], "calibration": asdict(calibration)}
        print_scores(evaluation, as_json, matrix, {**content, **more})
        return
    print_scores(evaluation, as_json, matrix)
    halves = calibration.split == evaluation.split
    _print_temperatures(calibration, subsets)
    _print_prediction_sets(calibration.prediction_sets)
    if calibration.early_stopping:
        _print_early_stopping(calibration.early_stopping)
    typer.echo()
    print_wrapped(
        f"Scores are means over all choices or orders of members. {_describe_fit(calibration, halves)}"
    )


def _print_temperatures(calibration: "Calibration", subsets: Sequence["Subset"]) -> None:
    typer.echo(f"\n{'members':>7}  {'temperature':>11}  {'top-1':>9}  {'NLL':>18}  {'ECE':>18}")
    for size, temperature in calibration.temperatures.items():
        alike = [subset for subset in subsets if len(subset.members) == size]
        top1, nll, calibrated_nll, ece, calibrated_ece = (
            mean(getattr(subset, name) for subset in alike)
            for name in ("top1", "nll", "calibrated_nll", "ece", "calibrated_ece")
        )
        typer.echo(
            f"{size:>7}  {temperature:>11.4f}  {top1:>9.2%}  "
            f"{nll:>8.4f} → {calibrated_nll:.4f}  {ece:>8.4f} → {calibrated_ece:.4f}"
        )
    for size in calibration.bounded:
        print_wrapped(
            f"{calibration.temperatures[size]} for {size} member{'s' * (size > 1)} is a limit of the search, "
            "not an optimum: calibrate on more images, or harder ones"
        )
    if calibration.nll_after > calibration.nll_before:
        print_wrapped(
            f"calibrating made the likelihood of other images worse: {calibration.images} images are too few "
            "to fit on, or differ from the others"
        )


def _print_prediction_sets(sets: "PredictionSets") -> None:
    """Print a row for each coverage and number of members: coverage as measured, and mean size."""
    from coserve_training.runs.prediction_sets import images_needed

    typer.echo("\nPrediction sets\ncoverage  members  LAC covers  classes    empty  RAPS covers  classes")
    for coverage, by_size in sets.lac.measured.items():
        for size, lac in by_size.items():
            raps = sets.raps.measured[coverage][size]
            typer.echo(
                f"{coverage:>8.0%}  {size:>7}  {lac.coverage:>10.2%}  {lac.size:>7.2f}  {lac.empty:>7.2%}  "
                f"{raps.coverage:>11.2%}  {raps.size:>7.2f}"
            )
    methods: dict[str, Lac | Raps] = {"LAC": sets.lac, "RAPS": sets.raps}
    for name, method in methods.items():
        for coverage in method.thresholds:
            needed = images_needed(coverage)
            if method.images < needed:
                print_wrapped(
                    f"{coverage:.0%} sets by {name} hold every class: they need {needed} images to fit on, "
                    f"not {method.images}"
                )
            elif method.images_when_measured < needed:
                print_wrapped(
                    f"{coverage:.0%} sets by {name} held every class when measured: they need {needed} "
                    f"images to fit on, and a half has {method.images_when_measured}"
                )


def _print_early_stopping(rows: Sequence["EarlyStopping"]) -> None:
    typer.echo("\nEarly stopping\nmay lose  confidence  members      top-1  all members")
    for row in rows:
        typer.echo(
            f"{row.loss:>8.1%}  {row.confidence:>10.4f}  {row.members:>7.2f}  {row.top1:>9.2%}  "
            f"{row.whole_top1:>11.2%}"
        )


def _describe_fit(calibration: "Calibration", halves: bool) -> str:
    if halves:
        return (
            "Each half of the images is scored with what was fitted on the other half; what is recorded is "
            "fitted on both."
        )
    return f"Everything is fitted on the {calibration.images} images of {calibration.split}/."
