"""AUROC and FPR95, by hand, against all pairs, and against torchmetrics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from coserve_training.doubt.detection import Separation, detect, separate
from coserve_training.errors import DataError

DOUBTS = st.lists(st.integers(0, 8), min_size=1, max_size=50)


def test_by_hand() -> None:
    """Three of the four pairs are in order, and half of the pair of equals; 95 % of two images is both."""
    separation = separate(torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.4, 0.9]))
    assert separation == Separation(auroc=round(4.5 / 6, 6), fpr95=round(2 / 3, 6))


def test_95_percent_of_twenty_images_is_nineteen() -> None:
    known = torch.arange(20).double()
    assert separate(known, torch.tensor([18.5, 18.0])).fpr95 == 0.5


@given(DOUBTS, DOUBTS)
def test_auroc_is_the_share_of_ordered_pairs(known: list[int], others: list[int]) -> None:
    pairs = [(a, b) for a in known for b in others]
    expected = sum((b > a) + (b == a) / 2 for a, b in pairs) / len(pairs)
    separation = separate(torch.tensor(known).double(), torch.tensor(others).double())
    assert separation.auroc == pytest.approx(expected, abs=1e-6)
    scores = torch.tensor(known + others) / 10
    labels = torch.tensor([0] * len(known) + [1] * len(others))
    assert separation.auroc == pytest.approx(float(binary_auroc(scores, labels)), abs=1e-5)


@given(DOUBTS, DOUBTS)
def test_fpr95_is_at_the_lowest_threshold_that_lets_95_percent_pass(
    known: list[int], others: list[int]
) -> None:
    threshold = next(t for t in range(9) if 20 * sum(a <= t for a in known) >= 19 * len(known))
    expected = sum(b <= threshold for b in others) / len(others)
    assert separate(torch.tensor(known).double(), torch.tensor(others).double()).fpr95 == pytest.approx(
        expected, abs=1e-6
    )


def test_a_members_row_is_the_mean_of_the_members_alone() -> None:
    known = torch.tensor([[[9.0, 0], [9, 0]], [[9.0, 0], [9, 0]]])
    others = torch.tensor([[[0.0, 1]], [[10.0, 0]]])
    detection = detect(known, others)
    assert detection["confidence"].ensemble == Separation(1, 0)
    assert detection["confidence"].member == Separation(auroc=0.5, fpr95=0.5)
    assert detection["disagreement"].ensemble == Separation(1, 0)
    assert detection["disagreement"].member is None


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="images of both kinds"):
        separate(torch.zeros(3), torch.zeros(0))


def test_doubt_that_is_not_a_number_is_refused() -> None:
    sound = torch.tensor([0.1, 0.2])
    broken = torch.tensor([0.1, torch.nan])
    for known, others in ((sound, broken), (broken, sound)):
        with pytest.raises(DataError, match="the doubt about some is NaN"):
            separate(known, others)
    assert separate(sound, torch.tensor([torch.inf, torch.inf])) == Separation(auroc=1, fpr95=0)
