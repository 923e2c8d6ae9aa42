"""Exporting a checkpoint of the paper's authors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from coserve_export.authors.archive import open_published
from coserve_export.authors.checkpoint import Checkpoint, load_checkpoint
from coserve_export.authors.datasets import labels_of, preprocessing_of
from coserve_export.authors.published import find_claim
from coserve_export.authors.recognise import Recognised, recognise
from coserve_export.authors.weights import build_member
from coserve_export.ensemble import note_repeated_labels
from coserve_export.errors import DescriptionError
from coserve_export.labels import read_labels
from coserve_export.report import Progress, Report
from coserve_export.samples import make_images
from coserve_export.trained import export_networks
from coserve_training.counting import count
from coserve_training.runs.folder import Run


def export_published(
    file: Path | str,
    repository: Path | str,
    *,
    network: str | None = None,
    split: int | None = None,
    dataset: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    labels: Path | str | None = None,
    name: str | None = None,
    progress: Progress = lambda _: None,
    **options: Any,
) -> Report:
    """Export a classifier that the paper's authors publish into a model repository.

    Its ONNX networks are first compared with torch on synthetic images. Nothing is written unless all checks
    pass.

    Args:
        file: a zip file of the authors, its unpacked folder, or the `model_best.pth.tar` in it.
        repository: Triton's model repository; created if it does not exist.
        network: the authors' name of the undivided network, such as `wide_resnet28_10`, if the file does not
            say it.
        split: the number of members, to be checked.
        dataset: `"cifar10"`, `"cifar100"`, `"svhn"` or `"imagenet"`, if the file does not say it.
        image_size: height and width of the images, if the file does not say it.
        labels: a text file with one label per line; by default those of the data set. ImageNet's are WordNet
            ids.
        name: the ensemble's name; by default network, split and data set.
        progress: called with a short description of each step.
        options: those of `export_run`, but for `checkpoint`, and `evaluation_data`: images whose test split
            measures the ensemble's accuracy.

    Returns:
        What was written.

    Raises:
        ExportError: the file is not such a checkpoint, a check failed, or the repository cannot be written.
    """
    file = Path(file)
    progress(f"reading {file.name}")
    with open_published(file) as found:
        checkpoint = load_checkpoint(found.path, found.name)
        recognised = recognise(
            checkpoint,
            found.settings,
            network=network,
            split=split,
            dataset=dataset,
            image_size=_square(image_size),
        )
        progress(f"building {recognised.network}")
        stated, claim = find_claim(
            recognised.arch, len(checkpoint.members), recognised.dataset, checkpoint.top1
        )
        run = _to_run(checkpoint, recognised, file.name, labels, stated)
        checkpoint.members.clear()
        report = export_networks(
            run,
            repository,
            name=name or f"{recognised.arch}_s{run.provenance['split']}_{recognised.dataset}",
            progress=progress,
            **options,
        )
    return replace(
        report, notes=[*recognised.notes, *note_repeated_labels(run.labels), *report.notes, *claim]
    )


def _square(size: int | tuple[int, int] | None) -> int | None:
    if not isinstance(size, tuple):
        return size
    if size[0] != size[1]:
        raise DescriptionError(f"--image-size: the authors' images are square, not {size[0]} x {size[1]}")
    return size[0]


def _to_run(
    checkpoint: Checkpoint,
    recognised: Recognised,
    file: str,
    labels: Path | str | None,
    stated: float | None,
) -> Run:
    classes = checkpoint.classes
    names = list(labels_of(recognised.dataset)) if labels is None else read_labels(Path(labels))
    if len(names) != classes:
        raise DescriptionError(f"--labels has {len(names)} labels for {classes} classes")
    members = [
        build_member(recognised.member, classes, weights, f"{checkpoint.name}: member {index}")
        for index, weights in enumerate(checkpoint.members)
    ]
    size = recognised.image_size
    return Run(
        members=members,
        labels=names,
        preprocessing=preprocessing_of(recognised.dataset, size),
        provenance=_provenance(checkpoint, recognised, file, stated),
        samples=make_images(size, size),
    )


def _provenance(
    checkpoint: Checkpoint, recognised: Recognised, file: str, stated: float | None
) -> dict[str, object]:
    split = len(checkpoint.members)
    member = count(recognised.member, checkpoint.classes, recognised.image_size)
    total = member.times(split)
    claimed = {
        "top1": stated,
        "checkpoint_top1": checkpoint.top1,
        "arch": recognised.arch,
        "file": file.encode(errors="replace").decode(errors="replace"),
    }
    return {
        "network": recognised.network,
        "split": split,
        "dataset": recognised.dataset,
        "member_networks": [str(recognised.member)] * split,
        "parameters": total.parameters,
        "multiply_adds": total.multiply_adds,
        "member_parameters": member.parameters,
        "member_multiply_adds": member.multiply_adds,
        "training": {"epochs": checkpoint.epochs, "checkpoint": "best"},
        "claimed": {key: value for key, value in claimed.items() if value is not None},
    }
