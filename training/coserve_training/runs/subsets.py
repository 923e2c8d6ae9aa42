"""Subsets of members and of images: what a calibration is fitted on, and what it is measured on."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from math import comb, factorial

import torch
from torch import Tensor

from coserve_training.runs.evaluate import Outputs

ALL_SUBSETS = 8
"""Up to this number of members, every subset is scored (255). Of S members beyond it, S of each size are."""
ORDERS = 24
"""The number of orders of members to average over: all of them for up to four members."""


@dataclass(frozen=True)
class Fit:
    """Images to fit on.

    Attributes:
        outputs: the members' outputs on these images.
        temperatures: temperatures by number of members, fitted on these images.
    """

    outputs: Outputs
    temperatures: dict[int, float]


@dataclass(frozen=True)
class Fold:
    """Images to fit on, and the members' outputs on other images, to measure the fit on."""

    fit: Fit
    held_out: Outputs


class SubsetMeans(Iterable[Tensor]):
    """The averaged logits `[N, C]` of each subset, computed one by one: all of them may not fit in memory."""

    def __init__(self, logits: Tensor, subsets: Sequence[tuple[int, ...]]) -> None:
        self.logits = logits
        self.subsets = subsets

    def __iter__(self) -> Iterator[Tensor]:
        return (self.logits[list(subset)].mean(0) for subset in self.subsets)


def member_subsets(members: int) -> dict[int, list[tuple[int, ...]]]:
    """Return the subsets of members by size: all of them, or a fixed choice beyond `ALL_SUBSETS` members."""
    return {size: _subsets(members, size) for size in range(1, members + 1)}


def member_orders(members: int) -> list[tuple[int, ...]]:
    """Return orders in which members may answer: all of them, or a fixed choice of about `ORDERS`.

    Every member goes first equally often.
    """
    if factorial(members) <= ORDERS:
        return list(permutations(range(members)))
    generator = random.Random(members)  # noqa: S311
    shuffled = [generator.sample(range(members), members) for _ in range(max(1, ORDERS // members))]
    return [(*order[first:], *order[:first]) for order in shuffled for first in range(members)]


def one_in(step: int, targets: Tensor) -> Tensor:
    """Mark every `step`-th image of classes `[N]`, counted class by class.

    What is left over in one class counts in the next: a share of its own for each would be too large for
    rare classes, and the marked images would not be like the others.
    """
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    chosen[targets.argsort(stable=True)[::step]] = True
    return chosen


def select(outputs: Outputs, chosen: Tensor) -> Outputs:
    """Return the outputs on the images that are marked in `[N]`."""
    return Outputs(outputs.logits[:, chosen], outputs.targets[chosen], outputs.split)


def _subsets(members: int, size: int) -> list[tuple[int, ...]]:
    if members <= ALL_SUBSETS or comb(members, size) <= members:
        return list(combinations(range(members), size))
    generator = random.Random(size)  # noqa: S311
    chosen = set[tuple[int, ...]]()
    while len(chosen) < members:
        chosen.add(tuple(sorted(generator.sample(range(members), size))))
    return sorted(chosen)
