"""The classifiers that the authors publish."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

RELEASES = "https://github.com/mzhaoshuai/SplitNet-Divide-and-Co-training/releases/download"

SAME_ACCURACY = 0.005
"""Difference of accuracies beyond which a file is another training's than the authors'."""


@dataclass(frozen=True)
class Published:
    """A published classifier.

    Attributes:
        arch: the authors' name of the undivided network.
        split: the number of members, S.
        dataset: `"cifar10"`, `"cifar100"` or `"imagenet"`.
        image_size: height and width of its images in pixels.
        top1: the ensemble's test accuracy as the authors state it, as a fraction.
        url: the address of its zip file.
    """

    arch: str
    split: int
    dataset: str
    image_size: int
    top1: float
    url: str


@cache
def published() -> tuple[Published, ...]:
    """Return the published classifiers."""
    text = files("coserve_export.authors").joinpath("published.csv").read_text("utf-8")
    return tuple(
        Published(
            arch=row["arch"],
            split=int(row["split"]),
            dataset=row["dataset"],
            image_size=int(row["image_size"]),
            top1=round(float(row["top1"]) / 100, 6),
            url=f"{RELEASES}/{row['release']}/{row['name']}.zip",
        )
        for row in csv.DictReader(text.splitlines())
    )


def find_published(arch: str, split: int, dataset: str) -> Published | None:
    """Return the published classifier of this network, split and data set; None if there is none."""
    for entry in published():
        if (entry.arch, entry.split, entry.dataset) == (arch, split, dataset):
            return entry
    return None


def is_of(top1: float | None, entry: Published) -> bool:
    """Return whether a file may be a published classifier, and not another training of the same network.

    Args:
        top1: the accuracy that the file states, as a fraction; None if it states none.
        entry: the published classifier.
    """
    return top1 is None or abs(top1 - entry.top1) <= SAME_ACCURACY
