"""The classes of prediction sets, against the definitions in plain Python."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coserve_server.ensembles.calibration import Calibration
from coserve_server.errors import InvalidParametersError
from coserve_server.pipeline.combine import combine, top_k
from coserve_server.pipeline.prediction_sets import find_rule, lac_sizes, raps_sizes
from tests.server.fake_engine import ensemble

# Few values, so that classes tie; the largest leave probability 0 to the others.
LOGITS = arrays(np.float64, (3, 5), elements=st.sampled_from([-1.0, 0, 0.5, 1, 3, 800]))
THRESHOLDS = st.floats(0, 1.5)
PENALTIES = st.sampled_from([0, 0.01, 0.3])
FREE_CLASSES = st.integers(1, 6)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def lac_scores(probabilities: np.ndarray) -> list[float]:
    return [1 - p for p in probabilities.tolist()]


def raps_scores(probabilities: np.ndarray, penalty: float, free_classes: int) -> list[float]:
    scores = [0.0] * len(probabilities)
    total = 0.0
    for rank, label in enumerate(top_k(probabilities, len(probabilities)).tolist(), start=1):
        scores[label] = min(total, 1) + penalty * max(0, rank - free_classes)
        total += probabilities[label]
    return scores


def smallest(scores: list[float], coverage: float) -> float:
    """Return the threshold of split conformal prediction."""
    return sorted(scores)[min(ceil((len(scores) + 1) * coverage), len(scores)) - 1]


@given(LOGITS, THRESHOLDS)
@settings(max_examples=100, deadline=None)
def test_lac_takes_the_classes_whose_score_is_at_most_the_threshold(
    logits: np.ndarray, threshold: float
) -> None:
    probabilities = softmax(logits)
    # Scores that are exactly the threshold are what thresholds are fitted on.
    for limit in (threshold, 1 - probabilities[0, 0]):
        for row, size in zip(probabilities, lac_sizes(probabilities, limit).tolist(), strict=True):
            expected = {label for label, score in enumerate(lac_scores(row)) if score <= limit}
            assert set(top_k(row, size).tolist()) == expected


@given(LOGITS, THRESHOLDS, PENALTIES, FREE_CLASSES)
@settings(max_examples=100, deadline=None)
def test_raps_takes_these_classes_and_always_the_first(
    logits: np.ndarray, threshold: float, penalty: float, free_classes: int
) -> None:
    probabilities = softmax(logits)
    # Scores that are exactly the threshold are what thresholds are fitted on.
    for limit in (threshold, raps_scores(probabilities[0], penalty, free_classes)[0]):
        sizes = raps_sizes(probabilities, limit, penalty, free_classes).tolist()
        for row, size in zip(probabilities, sizes, strict=True):
            scores = raps_scores(row, penalty, free_classes)
            expected = {label for label, score in enumerate(scores) if score <= limit}
            assert set(top_k(row, size).tolist()) == expected
            assert size >= 1


@given(LOGITS, st.tuples(THRESHOLDS, THRESHOLDS), PENALTIES, FREE_CLASSES)
@settings(max_examples=100, deadline=None)
def test_sets_grow_with_the_threshold(
    logits: np.ndarray, thresholds: tuple[float, float], penalty: float, free_classes: int
) -> None:
    probabilities = softmax(logits)
    low, high = sorted(thresholds)
    assert (lac_sizes(probabilities, low) <= lac_sizes(probabilities, high)).all()
    sizes = [raps_sizes(probabilities, limit, penalty, free_classes) for limit in (low, high)]
    assert (sizes[0] <= sizes[1]).all()


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_thresholds_of_true_classes_give_their_coverage(coverage: float) -> None:
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(0, 2, (400, 10)))
    truth = np.array([rng.choice(10, p=row) for row in probabilities])
    fitted = probabilities[:200]
    other = probabilities[200:]
    lac = smallest([lac_scores(row)[label] for row, label in zip(fitted, truth, strict=False)], coverage)
    raps = smallest(
        [raps_scores(row, 0.01, 1)[label] for row, label in zip(fitted, truth, strict=False)], coverage
    )
    for sizes in (lac_sizes(other, lac), raps_sizes(other, raps, 0.01, 1)):
        held = [
            label in top_k(row, size)
            for row, label, size in zip(other, truth[200:], sizes.tolist(), strict=True)
        ]
        assert np.mean(held) == pytest.approx(coverage, abs=0.06)
        assert sizes.mean() < 8


def test_a_threshold_of_the_largest_score_takes_every_class() -> None:
    """The first nine probabilities add up to 1.0000000000000002."""
    probabilities = np.array([[1 / 9] * 9 + [0.0]])
    assert raps_sizes(probabilities, 1, 0, 1).tolist() == [10]
    assert lac_sizes(np.array([[1.0, 0, 0]]), 1).tolist() == [3]


def test_a_set_of_lac_may_be_empty() -> None:
    probabilities = np.array([[0.4, 0.3, 0.3], [0.9, 0.1, 0]])
    assert lac_sizes(probabilities, 0.5).tolist() == [0, 1]
    assert raps_sizes(probabilities, 0, 0.1, 1).tolist() == [1, 1]


CALIBRATION = Calibration.model_validate(
    {
        "temperatures": {"1": 2, "2": 0.5},
        "prediction_sets": {
            "lac": {"thresholds": {"0.9": {"1": 0.3, "2": 0.65}, "0.95": {"2": 0.9}, "0.99": {"1": 1}}},
            "raps": {"penalty": 0.3, "free_classes": 1, "thresholds": {"0.95": {"1": 1, "2": 0.8}}},
        },
    }
)
TWO_MEMBERS = np.array([[[2, 1]], [[0, 0.6]]], np.float32)
"""Mean logits 1 and 0.8: probabilities 0.6 and 0.4 at the temperature 0.5."""


def test_the_calibrated_probabilities_and_the_threshold_are_those_of_the_members_that_answered() -> None:
    rule = find_rule(replace(ensemble(), calibration=CALIBRATION), 0.9, "lac")
    both = rule.apply(combine(TWO_MEMBERS, np.ones(2), CALIBRATION))
    assert (both.coverage, both.method, both.threshold, both.sizes) == (0.9, "lac", 0.65, [2])
    # Probabilities 0.62 and 0.38 at the temperature 2; without it 0.73 would be enough.
    alone = rule.apply(combine(TWO_MEMBERS[:1], np.ones(1), CALIBRATION))
    assert (alone.threshold, alone.sizes) == (0.3, [0])


def test_raps_has_its_own_thresholds_and_its_penalty() -> None:
    rule = find_rule(replace(ensemble(), calibration=CALIBRATION), 0.95, "raps")
    both = rule.apply(combine(TWO_MEMBERS, np.ones(2), CALIBRATION))
    # The second class has the score 0.6 + 0.3.
    assert (both.method, both.threshold, both.sizes) == ("raps", 0.8, [1])


def test_without_a_threshold_for_the_members_that_answered_there_are_no_sets() -> None:
    rule = find_rule(replace(ensemble(), calibration=CALIBRATION), 0.95, "lac")
    alone = rule.apply(combine(TWO_MEMBERS[:1], np.ones(1), CALIBRATION))
    assert (alone.threshold, alone.sizes) == (None, [None])


@pytest.mark.parametrize(
    ("members", "coverage", "method", "message"),
    [
        (2, 0.8, "lac", "coverage is 0.8; pair is calibrated for 0.9, 0.95"),
        (2, 0.99, "lac", "coverage is 0.99; pair is calibrated for 0.9, 0.95"),
        (2, 0.9, "raps", "coverage is 0.9; pair is calibrated for 0.95"),
        (2, float("nan"), "lac", "coverage is nan; pair is calibrated for 0.9, 0.95"),
        (1, 0.95, "lac", "coverage is 0.95; pair is calibrated for 0.9, 0.99"),
        (
            3,
            0.9,
            "lac",
            "pair has no thresholds for prediction sets; to calibrate it, run coserve evaluate --calib",
        ),
    ],
)
def test_what_is_not_calibrated_is_refused(members: int, coverage: float, method: str, message: str) -> None:
    calibrated = replace(ensemble(members), calibration=CALIBRATION)
    with pytest.raises(InvalidParametersError) as caught:
        find_rule(calibrated, coverage, method)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(("method", "other"), [("lac", "raps"), ("raps", "lac")])
@pytest.mark.parametrize("fewer_members", [False, True])
def test_the_calibrated_method_is_named(method: str, other: str, fewer_members: bool) -> None:
    """A method counts as calibrated if it has thresholds for the whole ensemble."""
    calibration = CALIBRATION.model_dump()
    thresholds = {0.95: {1: 0.5}}
    calibration["prediction_sets"][method] = (
        {"thresholds": thresholds, "penalty": 0, "free_classes": 1} if fewer_members else None
    )
    calibrated = replace(ensemble(), calibration=Calibration.model_validate(calibration))
    with pytest.raises(InvalidParametersError, match=f"'{method}'; pair is calibrated for {other} alone"):
        find_rule(calibrated, 0.95, method)  # type: ignore[arg-type]
