"""Confidences to stop early at: against every order followed image by image, and on fresh images."""

from itertools import permutations

import pytest
import torch

from coserve_training.runs.calibrate import calibrate
from coserve_training.runs.early_stopping import LOSSES, StoppingCurve, fit_early_stopping
from coserve_training.runs.evaluate import Outputs
from coserve_training.runs.subsets import Fit, Fold, one_in, select

CLASSES = 5
TEMPERATURES = {1: 1.3, 2: 1.1, 3: 1.0}


def draw(members: int, images: int, seed: int) -> Outputs:
    """Draw classes, and logits that get better the more members are averaged."""
    generator = torch.Generator().manual_seed(seed)
    honest = 3 * torch.randn(images, CLASSES, generator=generator)
    targets = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    return Outputs(honest + torch.randn(members, images, CLASSES, generator=generator), targets, "test")


def follow(outputs: Outputs, confidence: float) -> tuple[int, int]:
    """Return the numbers of answers and of right answers, one order and image after another."""
    answers = 0
    right = 0
    members, images, _ = outputs.logits.shape
    for order in permutations(range(members)):
        for image in range(images):
            for size in range(1, members + 1):
                mean = outputs.logits[list(order[:size]), image].double().mean(0)
                likely = (mean / TEMPERATURES[size]).softmax(-1)
                if likely.max() > confidence:
                    break
            answers += size
            right += int(likely.argmax() == outputs.targets[image])
    return answers, right


@pytest.mark.parametrize("confidence", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_stopping_is_what_following_every_order_gives(confidence: float) -> None:
    outputs = draw(3, 25, 1)
    curve = StoppingCurve.trace(outputs, TEMPERATURES)
    assert curve.stop(confidence) == follow(outputs, confidence)
    assert (curve.total, curve.members) == (6 * 25, 3)


def test_no_larger_confidence_loses_more_than_the_chosen_one_may() -> None:
    outputs = draw(3, 400, 2)
    curve = StoppingCurve.trace(outputs, TEMPERATURES)
    chosen = [curve.choose(loss) for loss in LOSSES]
    assert chosen == sorted(chosen, reverse=True)
    assert 0 < chosen[-1] < chosen[0] < 1
    for loss, confidence in zip(LOSSES, chosen, strict=True):
        larger = [confidence, *curve.confidences[curve.confidences > confidence].tolist()]
        assert max(curve.right - curve.stop(one)[1] for one in larger) <= loss * curve.total + 1e-9
        assert curve.right - curve.stop(confidence - 2e-4)[1] > loss * curve.total or any(
            curve.right - curve.stop(one)[1] > loss * curve.total
            for one in curve.confidences[curve.confidences > confidence - 2e-4].tolist()
        )


def test_members_that_are_alike_stop_at_once() -> None:
    outputs = draw(1, 50, 3)
    alike = Outputs(outputs.logits.expand(3, -1, -1), outputs.targets)
    fit = Fit(alike, dict.fromkeys((1, 2, 3), 1.0))
    for row in fit_early_stopping(fit, [Fold(fit, alike)]):
        assert (row.confidence, row.members, row.top1) == (0, 1, row.whole_top1)


def test_members_that_are_surely_wrong_alone_never_stop() -> None:
    """Two members are certain of different wrong classes; their mean is right."""
    logits = torch.zeros(2, 8, 3)
    logits[0, :, 0] = 2000
    logits[1, :, 1] = 2000
    logits[:, :, 2] = 1900
    outputs = Outputs(logits, torch.full((8,), 2))
    fit = Fit(outputs, {1: 1.0, 2: 1.0})
    for row in fit_early_stopping(fit, [Fold(fit, outputs)]):
        assert (row.confidence, row.members, row.top1, row.whole_top1) == (1, 2, 1, 1)


def test_one_member_has_nothing_to_stop() -> None:
    outputs = draw(1, 60, 4)
    calibration, _ = calibrate(outputs.logits, outputs.targets)
    assert calibration.early_stopping == []


def test_scores_are_of_images_that_the_confidences_were_not_fitted_on() -> None:
    fit = Fit(draw(3, 300, 5), TEMPERATURES)
    held_out = draw(3, 200, 6)
    own = StoppingCurve.trace(fit.outputs, TEMPERATURES)
    for row in fit_early_stopping(fit, [Fold(fit, held_out)]):
        assert row.confidence == own.choose(row.loss)
        answers, right = follow(held_out, row.confidence)
        assert row.members == pytest.approx(answers / (6 * 200), abs=1e-5)
        assert row.top1 == pytest.approx(right / (6 * 200), abs=1e-5)
        whole = held_out.logits.mean(0).argmax(-1) == held_out.targets
        assert row.whole_top1 == pytest.approx(float(whole.float().mean()), abs=1e-5)


def test_without_validation_images_each_half_measures_the_others_confidences() -> None:
    outputs = draw(2, 501, 7)
    calibration, _ = calibrate(outputs.logits, outputs.targets)
    first = one_in(2, outputs.targets)
    halves = [select(outputs, first), select(outputs, ~first)]
    weights = [len(halves[1].targets) / 501, len(halves[0].targets) / 501]
    each = [
        calibrate(other.logits, other.targets, fit_on=own)[0].early_stopping
        for own, other in (halves, halves[::-1])
    ]
    whole = calibrate(outputs.logits, outputs.targets, fit_on=outputs)[0].early_stopping
    for row, same, one, two in zip(calibration.early_stopping, whole, *each, strict=True):
        assert (row.loss, row.confidence) == (same.loss, same.confidence)
        for name in ("members", "top1", "whole_top1"):
            mean = weights[0] * getattr(one, name) + weights[1] * getattr(two, name)
            assert getattr(row, name) == pytest.approx(mean, abs=3e-5)


def test_fresh_images_lose_about_what_may_be_lost() -> None:
    test = draw(4, 4000, 8)
    calibration, _ = calibrate(test.logits, test.targets, fit_on=draw(4, 4000, 9))
    members = [row.members for row in calibration.early_stopping]
    assert members == sorted(members, reverse=True)
    assert members[0] < 3
    for row in calibration.early_stopping:
        assert row.whole_top1 - row.top1 < row.loss + 0.004
