"""Stopping early: how confident the members that have answered must be for their answer to be enough.

There is one confidence for each loss of accuracy, whatever number of members has answered. Confidences by
number need fewer members but overfit: fitted on 2500 images to lose nothing, those of a wide_resnet16_4 in
four members lost 0.13 points of accuracy on other images, and one for all numbers nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from coserve_training.runs.evaluate import Outputs
from coserve_training.runs.subsets import Fit, Fold, member_orders

LOSSES = (0.0, 0.001, 0.005)
"""The losses of top-1 accuracy that may be chosen, as fractions."""
DIGITS = 4
"""Decimals of a confidence, rounded up."""


@dataclass(frozen=True)
class EarlyStopping:
    """The confidence at which to stop for a loss of accuracy, with scores on images it was not fitted on.

    Members answer one after another, until the largest calibrated probability of their averaged logits
    exceeds `confidence`, or all have answered. Scores are averaged over the orders of members.

    Attributes:
        loss: the top-1 accuracy that may be lost, as a fraction.
        confidence: the confidence to exceed; 1 if all members have to answer.
        members: mean number of members that answer.
        top1: top-1 accuracy of the answers, as a fraction.
        whole_top1: top-1 accuracy of all members together.
    """

    loss: float
    confidence: float
    members: float
    top1: float
    whole_top1: float


@dataclass(frozen=True)
class StoppingCurve:
    """What stopping at each confidence saves and loses on some images, summed over orders of members.

    Attributes:
        confidences: the confidence that each answer of fewer than all members would have to exceed to end
            its order, `[E]`, falling: the largest one up to that answer.
        lost: number of right answers lost by stopping at all answers up to this one, `[E]`.
        right: number of right answers without stopping.
        total: number of answers, one for each image and order.
        members: number of members.
    """

    confidences: Tensor
    lost: Tensor
    right: int
    total: int
    members: int

    @classmethod
    def trace(cls, outputs: Outputs, temperatures: dict[int, float]) -> "StoppingCurve":
        """Follow the members' answers in every order."""
        members, images, _ = outputs.logits.shape
        answers: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        confidences = []
        lost = []
        orders = member_orders(members)
        for order in orders:
            largest = torch.zeros(images, dtype=torch.float64)
            before = None
            for size in range(1, members + 1):
                subset = tuple(sorted(order[:size]))
                if subset not in answers:
                    answers[subset] = _answer(outputs, subset, temperatures[size])
                confidence, right = answers[subset]
                if before is not None:
                    confidences.append(largest)
                    lost.append(right - before)
                largest = torch.maximum(largest, confidence)
                before = right
        falling, positions = torch.cat(confidences).sort(descending=True)
        right = answers[tuple(range(members))][1]
        return cls(
            confidences=falling,
            lost=torch.cat(lost)[positions].cumsum(0),
            right=len(orders) * int(right.sum()),
            total=len(orders) * images,
            members=members,
        )

    def choose(self, loss: float) -> float:
        """Return the smallest confidence such that stopping there, or at any larger one, loses at most this.

        A smaller confidence may lose no more by chance. Fresh images would then lose more.
        """
        distinct = torch.ones(len(self.confidences), dtype=torch.bool)
        distinct[:-1] = self.confidences[:-1] != self.confidences[1:]
        too_much = self.confidences[distinct & (self.lost > loss * self.total + 1e-6)]
        return min(1.0, ceil(float(too_much[0]) * 10**DIGITS) / 10**DIGITS) if len(too_much) else 0.0

    def stop(self, confidence: float) -> tuple[int, int]:
        """Return the numbers of answers and of right ones, if members stop beyond a confidence."""
        stopped = int((self.confidences > confidence).sum())
        lost = int(self.lost[stopped - 1]) if stopped else 0
        return self.members * self.total - stopped, self.right - lost


def fit_early_stopping(fit: Fit, folds: Sequence[Fold]) -> list[EarlyStopping]:
    """Fit a confidence for every loss, and measure it on held-out images; one member has none.

    Args:
        fit: the images that the returned confidences are fitted on.
        folds: where to measure. The confidences of a fold are fitted on its own images.
    """
    if len(fit.outputs.logits) == 1:
        return []
    fitted = StoppingCurve.trace(fit.outputs, fit.temperatures)
    measured = []
    for fold in folds:
        own = fitted if fold.fit is fit else StoppingCurve.trace(fold.fit.outputs, fold.fit.temperatures)
        measured.append((own, StoppingCurve.trace(fold.held_out, fold.fit.temperatures)))
    total = sum(held_out.total for _, held_out in measured)
    whole = sum(held_out.right for _, held_out in measured)
    rows = []
    for loss in LOSSES:
        stopped = [held_out.stop(own.choose(loss)) for own, held_out in measured]
        answers, right = (sum(numbers) for numbers in zip(*stopped, strict=True))
        figures = [round(number / total, 5) for number in (answers, right, whole)]
        rows.append(EarlyStopping(loss, fitted.choose(loss), *figures))
    return rows


def _answer(outputs: Outputs, subset: tuple[int, ...], temperature: float) -> tuple[Tensor, Tensor]:
    """Return the confidence `[N]` of some members' answers, and 1 for each right one, `[N]`."""
    logits = outputs.logits[list(subset)].mean(0).double() / temperature
    likeliest, classes = logits.max(-1)
    confidence = (likeliest - logits.logsumexp(-1)).exp()
    return confidence, (classes == outputs.targets).long()
