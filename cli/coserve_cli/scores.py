"""Prints the scores of an ensemble, after training and evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from types import MappingProxyType
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from coserve_training.runs.calibrate import Calibration, Subset
    from coserve_training.runs.classes import ConfusionMatrix
    from coserve_training.runs.evaluate import Evaluation


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
        listed = ", ".join(f"{one.label} {recall:.2%} of {one.images}" for recall, one in worst)
        typer.echo(f"lowest recall: {listed}")
        pairs = ", ".join(
            f"{pair.actual} as {pair.predicted} {pair.images}" for pair in matrix.confusions[:WORST]
        )
        typer.echo(f"most confused: {pairs}")


def print_calibration(
    evaluation: "Evaluation",
    calibration: "Calibration",
    subsets: Sequence["Subset"],
    as_json: bool,
    matrix: "ConfusionMatrix | None" = None,
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Print the scores, and then a row for each number of members, or JSON with `more`."""
    if as_json:
        content = {"subsets": [asdict(subset) for subset in subsets], "calibration": asdict(calibration)}
        print_scores(evaluation, as_json, matrix, {**content, **more})
        return
    print_scores(evaluation, as_json, matrix)
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
        typer.echo(
            f"{calibration.temperatures[size]} for {size} member{'s' * (size > 1)} is a limit of the search, "
            "not an optimum: calibrate on more images, or harder ones"
        )
    typer.echo("Means over all choices of that many members. " + _describe_fit(evaluation, calibration))


def _describe_fit(evaluation: "Evaluation", calibration: "Calibration") -> str:
    if calibration.split == evaluation.split:
        return (
            "Each half of the images is scored (→) with a\n"
            "temperature fitted on the other half; the temperature shown and recorded is fitted on both."
        )
    return f"Temperatures are fitted on the\n{calibration.images} images of {calibration.split}/."
