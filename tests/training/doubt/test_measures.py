"""Measures of doubt, by hand."""

from math import log

import pytest
import torch

from coserve_training.doubt import measures
from coserve_training.doubt.measures import MEASURES, measure_doubt
from coserve_training.errors import DataError


def test_one_image_by_hand() -> None:
    """Two members with probabilities (2/3, 1/3) and (1/6, 5/6); the mean logits are ln 2 / 2 and ln 5 / 2."""
    logits = torch.tensor([[[log(2), 0.0]], [[0.0, log(5)]]])
    doubt = {name: float(values) for name, values in measure_doubt(logits).items()}
    assert tuple(doubt) == MEASURES
    p = 2**0.5 / (2**0.5 + 5**0.5)
    mixture = (2 / 3 + 1 / 6) / 2
    information = _entropy(mixture) - (_entropy(1 / 3) + _entropy(1 / 6)) / 2
    assert doubt == pytest.approx(
        {
            "confidence": p,
            "entropy": _entropy(p),
            "mutual_information": information,
            "disagreement": 1.0,
            "max_logit": -log(5) / 2,
            "energy": -log(2**0.5 + 5**0.5),
        },
        abs=1e-6,
    )


def test_disagreement_counts_pairs() -> None:
    votes = torch.tensor([[0, 0], [0, 1], [1, 2], [0, 0]])
    doubt = measure_doubt(torch.eye(3)[votes])["disagreement"]
    assert doubt.tolist() == pytest.approx([3 / 6, 5 / 6])


def test_one_member_has_no_disagreement_and_agreeing_members_have_none() -> None:
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    assert set(measure_doubt(logits)) == set(MEASURES) - {"disagreement", "mutual_information"}
    doubt = measure_doubt(logits.expand(3, -1, -1))
    assert doubt["disagreement"].tolist() == [0] * 5
    assert 0 <= doubt["mutual_information"].min() <= doubt["mutual_information"].max() < 1e-12


def test_certainty_is_no_doubt_and_not_nan() -> None:
    doubt = measure_doubt(torch.tensor([[[1e4, 0.0]], [[1e4, 0.0]]]))
    assert {name: float(doubt[name]) for name in MEASURES[:4]} == dict.fromkeys(MEASURES[:4], 0.0)


def test_confident_images_keep_their_order() -> None:
    """In float32, both confidences are 1."""
    confidence = measure_doubt(torch.tensor([[[20.0, 0.0], [25.0, 0.0]]]))["confidence"]
    assert confidence[0] > confidence[1] > 0


def test_many_images_are_measured_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    alone = [measure_doubt(logits[:, [image]]) for image in range(7)]
    sizes = []
    measure = measures._measure
    monkeypatch.setattr(measures, "BLOCK", 3)
    monkeypatch.setattr(measures, "_measure", lambda block: sizes.append(block.shape[1]) or measure(block))
    for name, values in measure_doubt(logits).items():
        torch.testing.assert_close(values, torch.cat([one[name] for one in alone]))
    assert sizes == [3, 3, 1]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[members, images, classes\], not \[4, 3\]"):
        measure_doubt(torch.zeros(4, 3))


def _entropy(p: float) -> float:
    return -p * log(p) - (1 - p) * log(1 - p)
