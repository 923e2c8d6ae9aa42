"""The classifiers that the authors publish."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

RELEASES = "https://github.com/mzhaoshuai/SplitNet-Divide-and-Co-training/releases/download"

SAME_ACCURACY = 0.005
"""Largest difference between the published accuracy and the one that the published file states."""


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


def find_claim(arch: str, split: int, dataset: str, top1: float | None) -> tuple[float | None, list[str]]:
    """Return the accuracy that the authors publish, unless the file is not theirs, and notes for the user.

    Args:
        arch, split, dataset: see `Published`.
        top1: the accuracy that the file states, as a fraction; None if it states none.
    """
    entry = find_published(arch, split, dataset)
    if entry is None:
        return None, []
    stated = f"the authors state a top-1 accuracy of {entry.top1:.2%}"
    if top1 is None or abs(top1 - entry.top1) <= SAME_ACCURACY:
        return entry.top1, [stated]
    return None, [
        f"{stated}, but this file {top1:.2%}: it comes from another training, so their figure is not recorded"
    ]
