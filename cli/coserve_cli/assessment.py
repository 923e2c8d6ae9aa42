"""Prints what an ensemble knows about its own doubt."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from coserve_training.doubt.assess import Assessment, OtherImages
    from coserve_training.doubt.detection import Separation
    from coserve_training.doubt.robustness import Robustness, RobustScores
    from coserve_training.doubt.selective import SelectiveAccuracy

NAME = 18
"""Width of the column of names."""


def print_assessment(assessment: "Assessment") -> None:
    """Print a table of selective accuracy, one for each kind of other images, and one of corrupted copies."""
    _print_selective(assessment.selective_accuracy)
    for others in assessment.other_images:
        _print_others(others)
    if assessment.corrupted is not None:
        _print_corrupted(assessment.corrupted)


def _print_selective(scores: "dict[str, SelectiveAccuracy]") -> None:
    coverages = next(iter(scores.values())).accuracies
    heads = "".join(f"{f'{percent}%':>8}" for percent in coverages)
    typer.echo("\ntop-1 if only the images with the least doubt are answered")
    typer.echo(f"{'answered':{NAME}}{heads}{'AURC':>8}{'excess':>8}")
    for name, one in scores.items():
        accuracies = "".join(f"{accuracy:>8.2%}" for accuracy in one.accuracies.values())
        typer.echo(f"{_words(name):{NAME}}{accuracies}{one.aurc:>8.4f}{one.excess_aurc:>8.4f}")


def _print_others(others: "OtherImages") -> None:
    typer.echo(f"\n{others.path}: {others.images} images, told from the test images")
    typer.echo(f"{'':{NAME}}{'ensemble':>10}{'':>10}{'one member':>12}")
    typer.echo(f"{'':{NAME}}{'AUROC':>10}{'FPR95':>10}{'AUROC':>12}{'FPR95':>10}")
    for name, detection in others.detection.items():
        ensemble = _separation(detection.ensemble, 10)
        member = "" if detection.member is None else _separation(detection.member, 12)
        typer.echo(f"{_words(name):{NAME}}{ensemble}{member}")


def _separation(separation: "Separation", width: int) -> str:
    return f"{separation.auroc:>{width}.2%}{separation.fpr95:>10.2%}"


def _print_corrupted(corrupted: "Robustness") -> None:
    typer.echo(
        f"\n{f'{corrupted.images} images':{NAME}}{'top-1':>8}{'member':>8}{'NLL':>8}{'member':>8}"
        f"{'ECE':>8}{'member':>8}{'differ':>8}"
    )
    rows = [("as they are", corrupted.clean)]
    for one in corrupted.corruptions:
        drawn = " (drawn)" if one.corruption in corrupted.drawn else ""
        rows.append((_words(one.corruption) + drawn, one.mean))
    rows.append(("mean of corrupted", corrupted.mean))
    for name, scores in rows:
        typer.echo(f"{name:{NAME}}{_corrupted_row(scores)}")
    typer.echo(
        "Means over five severities. member: mean of the members alone; differ: images on\n"
        "which members predict different classes. The corruptions follow CIFAR-10-C, but\n"
        "are not its images; frost is drawn in place of the authors' photographs."
    )


def _corrupted_row(scores: "RobustScores") -> str:
    ensemble = scores.ensemble
    member = scores.member
    return (
        f"{ensemble.top1:>8.2%}{member.top1:>8.2%}{ensemble.nll:>8.4f}{member.nll:>8.4f}"
        f"{ensemble.ece:>8.4f}{member.ece:>8.4f}{scores.disagreement:>8.2%}"
    )


def _words(name: str) -> str:
    return name.replace("_", " ")
