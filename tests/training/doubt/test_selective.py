"""Risk-coverage curves, by hand and against a plain loop over thresholds."""

import math
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coserve_training.doubt.selective import score_doubt, selective_accuracy
from coserve_training.errors import DataError

ANSWERS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def test_four_images_by_hand() -> None:
    """Risks by rank: 0/1, 1/2, 1/3, 2/4; the best order has 0, 0, 1/3, 2/4."""
    doubt = torch.tensor([0.9, 0.1, 0.2, 0.3])
    scores = selective_accuracy(doubt, torch.tensor([False, True, False, True]))
    assert scores.aurc == pytest.approx((1 / 2 + 1 / 3 + 2 / 4) / 4, abs=1e-6)
    assert scores.excess_aurc == pytest.approx(1 / 8, abs=1e-6)
    assert scores.accuracies == {100: 0.5, 95: 0.5, 90: 0.5, 80: 0.5, 50: 0.5}
    assert (scores.risks[24], scores.risks[25], scores.risks[74]) == (0, 0.5, 0.333333)


def test_equal_doubt_is_no_information() -> None:
    correct = torch.tensor([True] * 3 + [False])
    scores = selective_accuracy(torch.zeros(4), correct)
    assert scores.aurc == 0.25
    assert set(scores.risks) == {0.25}
    assert scores == selective_accuracy(torch.zeros(4), correct.flip(0))


@given(ANSWERS)
def test_risks_are_those_of_all_orders_of_equal_doubt(answers: list[tuple[int, bool]]) -> None:
    images = len(answers)
    risks = [_expected_risk(answers, kept) for kept in range(1, images + 1)]
    best = [_expected_risk([(not right, right) for _, right in answers], k) for k in range(1, images + 1)]
    doubt, correct = (torch.tensor(values) for values in zip(*answers, strict=True))
    scores = selective_accuracy(doubt.double(), correct)
    assert scores.aurc == pytest.approx(sum(risks) / images, abs=1e-6)
    assert scores.excess_aurc == pytest.approx((sum(risks) - sum(best)) / images, abs=2e-6)
    assert scores.risks == pytest.approx([risks[ceil(images * p / 100) - 1] for p in range(1, 101)], abs=1e-6)
    assert scores.accuracies[80] == pytest.approx(1 - scores.risks[79], abs=1e-6)


def _expected_risk(answers: list[tuple[int, bool]], kept: int) -> float:
    """Average over random orders: images of the last doubt that fits are kept with equal probability."""
    errors = 0.0
    for doubt, right in answers:
        below = sum(other < doubt for other, _ in answers)
        equal = sum(other == doubt for other, _ in answers)
        errors += (not right) * min(1.0, max(0.0, (kept - below) / equal))
    return errors / kept


def test_the_ensembles_answers_are_scored() -> None:
    """Member 0 is right and unsure about the second image; the mean is wrong about it."""
    logits = torch.tensor([[[4.0, 0], [0, 1]], [[4.0, 0], [2, 0]]])
    scores = score_doubt(logits, torch.tensor([0, 1]))
    assert scores["confidence"].accuracies[100] == 0.5
    assert scores["confidence"].accuracies[50] == 1
    assert scores["disagreement"].aurc == 0.25


@pytest.mark.parametrize("images", [0, 2])
def test_other_shapes_are_refused(images: int) -> None:
    with pytest.raises(DataError, match="must be"):
        selective_accuracy(torch.zeros(images), torch.ones(images // 2, dtype=torch.bool))


def test_doubt_must_be_a_number() -> None:
    with pytest.raises(DataError, match="some images is NaN"):
        selective_accuracy(torch.tensor([0.5, math.nan]), torch.ones(2, dtype=torch.bool))
