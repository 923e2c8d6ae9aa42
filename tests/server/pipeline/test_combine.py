import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coserve_server.ensembles.calibration import Calibration
from coserve_server.pipeline.combine import combine, combine_apart, top_k


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def logits(*members: list[float]) -> np.ndarray:
    """Return the members' logits of one image, `[S, 1, C]`."""
    return np.array(members, np.float32)[:, None, :]


def test_logits_are_averaged() -> None:
    combined = combine(logits([1, 2, 3], [3, 2, 7]), np.ones(2))
    np.testing.assert_allclose(combined.logits, [[2, 2, 5]])
    np.testing.assert_allclose(combined.probabilities, softmax(np.array([[2.0, 2, 5]])))


def test_only_the_proportions_of_weights_matter() -> None:
    members = logits([0, 4], [8, 0])
    np.testing.assert_allclose(combine(members, np.array([3.0, 1])).logits, [[2, 3]])
    np.testing.assert_allclose(combine(members, np.array([30.0, 10])).logits, [[2, 3]])
    for large in (1e308, 1e-308):
        np.testing.assert_allclose(combine(members, np.array([large, large / 3])).logits, [[2, 3]])


def test_uncertainty_of_members_that_know_nothing() -> None:
    combined = combine(np.zeros((2, 1, 4), np.float32), np.ones(2))
    np.testing.assert_allclose(combined.entropy, np.log(4))
    np.testing.assert_allclose(combined.disagreement, 0, atol=1e-12)


def test_uncertainty_of_sure_members_that_contradict_each_other() -> None:
    combined = combine(logits([100, 0], [0, 100]), np.ones(2))
    np.testing.assert_allclose(combined.disagreement, np.log(2), atol=1e-6)


def test_a_certain_answer_has_no_negative_zero() -> None:
    combined = combine(logits([1000, 0], [1000, 0]), np.ones(2))
    assert (str(combined.entropy[0]), str(combined.disagreement[0])) == ("0.0", "0.0")


def test_members_that_agree_do_not_disagree() -> None:
    combined = combine(logits([5, 1, 0], [5, 1, 0], [5, 1, 0]), np.array([1.0, 2, 3]))
    np.testing.assert_allclose(combined.disagreement, 0, atol=1e-12)
    assert 0 < combined.entropy[0] < np.log(3)


@given(arrays(np.float32, (1, 2, 4), elements=st.floats(-20, 20, width=32)))
@settings(max_examples=50, deadline=None)
def test_one_member_alone_disagrees_with_nobody(member: np.ndarray) -> None:
    assert not combine(member, np.ones(1)).disagreement.any()


@given(arrays(np.float32, (3, 2, 4), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
@settings(max_examples=200, deadline=None)
def test_any_finite_logits_give_finite_answers_in_bounds(members: np.ndarray) -> None:
    combined = combine(members, np.ones(3))
    for values in (combined.logits, combined.probabilities, combined.entropy, combined.disagreement):
        assert np.isfinite(values).all()
    np.testing.assert_allclose(combined.probabilities.sum(axis=-1), 1)
    # -0 is not less than 0.
    for values in (combined.probabilities, combined.entropy, combined.disagreement):
        assert not np.signbit(values).any()
    assert (combined.entropy <= np.log(4) + 1e-9).all()
    assert (combined.disagreement >= 0).all()
    assert (combined.disagreement <= np.log(3) + 1e-9).all()


@pytest.mark.parametrize(("k", "expected"), [(1, [2]), (3, [2, 0, 3]), (9, [2, 0, 3, 1])])
def test_top_k_goes_from_most_probable_with_ties_by_class(k: int, expected: list[int]) -> None:
    assert top_k(np.array([0.2, 0.1, 0.5, 0.2]), k).tolist() == expected


def test_many_ties_are_in_the_order_of_classes() -> None:
    scores = np.tile([0.2, 0.1], 500)
    assert top_k(scores, 1000).tolist() == [*range(0, 1000, 2), *range(1, 1000, 2)]


@given(arrays(np.float64, 100, elements=st.integers(0, 9)), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_the_top_few_are_the_first_of_all(scores: np.ndarray, k: int) -> None:
    assert top_k(scores, k).tolist() == top_k(scores, 100)[:k].tolist()


def test_each_number_of_members_has_its_temperature() -> None:
    calibration = Calibration.model_validate({"temperatures": {"1": 0.5, "2": 4}})
    members = logits([1, 2, 3], [3, 2, 7])
    both = combine(members, np.ones(2), calibration=calibration)
    np.testing.assert_allclose(both.logits, [[2, 2, 5]])
    np.testing.assert_allclose(both.probabilities, softmax(np.array([[2.0, 2, 5]]) / 4))
    np.testing.assert_allclose(both.entropy, -(both.probabilities * np.log(both.probabilities)).sum(-1))
    np.testing.assert_allclose(both.member_probabilities, softmax(members / np.float64(0.5)))
    p = both.member_probabilities
    information = (p * np.log(p / p.mean(0))).sum(-1).mean(0)
    np.testing.assert_allclose(both.disagreement, information)
    alone = combine(members[:1], np.ones(1), calibration=calibration)
    np.testing.assert_allclose(alone.probabilities, both.member_probabilities[0])
    uncalibrated = combine(logits([1, 2, 3], [3, 2, 7], [0, 0, 0]), np.ones(3), calibration=calibration)
    np.testing.assert_allclose(uncalibrated.probabilities, softmax(uncalibrated.logits))


def test_images_with_members_of_their_own_are_answered_as_if_they_were_alone() -> None:
    random = np.random.default_rng(5)
    values = random.normal(0, 3, (3, 5, 4)).astype(np.float32)
    weights = np.array([1.0, 0.25, 2.0])
    calibration = Calibration(temperatures={1: 1.3, 2: 0.7, 3: 2.0})
    answered = [(0, 1, 2), (2,), (0, 1), (1,), (0, 1)]
    unasked = [(member, image) for image, own in enumerate(answered) for member in {0, 1, 2}.difference(own)]
    values[tuple(zip(*unasked, strict=True))] = np.nan
    apart = combine_apart(values, answered, weights, calibration)
    assert apart.counts == [3, 1, 2, 1, 2]
    for image, own in enumerate(answered):
        members = list(own)
        alone = combine(values[members, image : image + 1], weights[members], calibration)
        for name in ("logits", "probabilities", "entropy", "disagreement"):
            np.testing.assert_allclose(getattr(apart, name)[image], getattr(alone, name)[0], err_msg=name)
        np.testing.assert_allclose(
            apart.member_probabilities[members, image], alone.member_probabilities[:, 0]
        )
    assert {
        (member, image) for member, image, *_ in np.argwhere(np.isnan(apart.member_probabilities))
    } == set(unasked)
