"""What an ensemble knows about its own doubt: all that `coserve evaluate` reports of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coserve_training.data import Progress, Unlabelled, load_unlabelled
from coserve_training.doubt.detection import Detection, detect
from coserve_training.doubt.robustness import Robustness, score_corrupted
from coserve_training.doubt.selective import SelectiveAccuracy, score_doubt
from coserve_training.runs.evaluate import Outputs, held_out_logits, member_logits, report_replaced
from coserve_training.runs.folder import Checkpoint, Description, Run


@dataclass(frozen=True)
class OtherImages:
    """How well images of another kind are told from the test images.

    Attributes:
        path: where they come from.
        images: number of them.
        skipped: images that cannot be decoded, each with its reason.
        detection: AUROC and FPR95 by measure of doubt.
    """

    path: str
    images: int
    skipped: list[str]
    detection: dict[str, Detection]


@dataclass(frozen=True)
class Assessment:
    """What an ensemble knows about its own doubt.

    Attributes:
        selective_accuracy: by measure of doubt.
        other_images: for each path of images of other kinds.
        corrupted: scores on corrupted copies; None if there are none.
    """

    selective_accuracy: dict[str, SelectiveAccuracy]
    other_images: list[OtherImages]
    corrupted: Robustness | None


def read_others(
    folder: Path,
    paths: Sequence[Path | str],
    limit: int | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
) -> list[Unlabelled]:
    """Read images of other kinds, and prepare them as a run's own.

    Args:
        folder: the run folder.
        paths: folders, zips and published files, each of one kind; `load_unlabelled` says which.
        limit: read at most this number of images of each kind, evenly spaced.
        progress: called with the progress of decoding.
        report: called with a line for each thing to note about the images.

    Raises:
        RunError: if the folder is not a run folder.
        DataError: if there is no image that can be decoded.
        ConfigError: if the limit is below 1.
    """
    config = Description.read(folder).config
    kinds = list[Unlabelled]()
    for path in paths:
        kind = load_unlabelled(
            Path(path),
            config.image_size,
            progress,
            resize_size=config.resize_size,
            interpolation=config.interpolation,
            limit=limit,
        )
        for note in kind.notes:
            report(note)
        kinds.append(kind)
    return kinds


def assess(
    folder: Path,
    run: Run,
    test: Outputs,
    others: Sequence[Unlabelled] = (),
    *,
    corrupted: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
) -> Assessment:
    """Score measures of doubt on the test images, on images of other kinds, and on corrupted copies.

    Args:
        folder: the run folder.
        run: the ensemble in it.
        test: its outputs on the test images.
        others: images of other kinds, from `read_others`.
        corrupted: score corrupted copies of the test images.
        limit: corrupt at most this number of test images, evenly spaced.
        progress: called with the progress of evaluating.
        report: called with a line for each image that became unreadable.

    Raises:
        RunError: if a member's logits are not finite.
        ConfigError: if the limit is below 1.
    """
    description = Description.read(folder)
    mean = description.mean
    std = description.std
    detected = list[OtherImages]()
    for kind in others:
        logits = member_logits(run.members, kind.split, mean, std, progress)
        report_replaced(kind.split, report)
        skipped = kind.skipped + kind.split.replaced
        detected.append(OtherImages(kind.path, len(kind.split), skipped, detect(test.logits, logits)))
    robustness = None
    if corrupted:
        robustness = score_corrupted(run, test, mean, std, limit, progress=progress, report=report)
    return Assessment(score_doubt(test.logits, test.targets), detected, robustness)


def assess_run(
    folder: Path | str,
    data: Sequence[Path | str] | Path | str | None = None,
    others: Sequence[Path | str] = (),
    checkpoint: Checkpoint = "last",
    *,
    corrupted: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
) -> Assessment:
    """Score what a run's ensemble knows about its own doubt.

    Args:
        folder: the run folder.
        data: one or several paths of a data set with test images; by default the run's own data.
        others: paths of images of other kinds, labelled or not.
        checkpoint: "last", or "best" for the best epoch (docs/guides/training/data.md, Splits).
        corrupted: score corrupted copies of the test images.
        limit: corrupt at most this number of test images, and take at most this number from each of `others`.
        progress: called with the progress of decoding and evaluating.
        report: called with a line for each thing to note about the data.

    Raises:
        RunError: if the folder is not a run folder, or a member's logits are not finite.
        DataError: if images cannot be read, or the test images cannot be used (`evaluate_run`).
        ConfigError: if the limit is below 1.
    """
    folder = Path(folder)
    kinds = read_others(folder, others, limit, progress, report)
    run, test, _ = held_out_logits(folder, data, checkpoint, progress, report)
    return assess(
        folder, run, test, kinds, corrupted=corrupted, limit=limit, progress=progress, report=report
    )
