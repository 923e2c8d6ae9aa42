"""Coverage, size and thresholds of prediction sets, on classes drawn from the softmax of known logits."""

from math import ceil, sqrt

import pytest
import torch
from torch import Tensor

from coserve_training.runs.calibrate import calibrate
from coserve_training.runs.evaluate import Outputs
from coserve_training.runs.prediction_sets import (
    COVERAGES,
    PENALTIES,
    Lac,
    PredictionSets,
    Raps,
    SetScores,
    conformal_threshold,
    fit_prediction_sets,
    lac_scores,
    raps_scores,
)
from coserve_training.runs.subsets import Fit, Fold, member_subsets, one_in, select

CLASSES = 7


def draw(members: int, images: int, seed: int, *, scale: float = 2.0, skew: float = 0.0) -> Outputs:
    """Draw classes and members' noisy logits. A larger scale means fewer errors; `skew` favours class 0."""
    generator = torch.Generator().manual_seed(seed)
    honest = scale * torch.randn(images, CLASSES, generator=generator)
    honest[:, 0] += skew
    targets = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    return Outputs(honest + torch.randn(members, images, CLASSES, generator=generator), targets, "test")


def fit(outputs: Outputs, held_out: Outputs | None = None, temperature: float = 1.0) -> PredictionSets:
    some = Fit(outputs, dict.fromkeys(range(1, len(outputs.logits) + 1), temperature))
    return fit_prediction_sets(some, [Fold(some, outputs if held_out is None else held_out)])


def probabilities(outputs: Outputs, subset: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    return (outputs.logits[list(subset)].mean(0).double() / temperature).softmax(-1)


def all_measured(sets: PredictionSets) -> list[tuple[float, SetScores]]:
    return [
        (coverage, scores)
        for method in (sets.lac, sets.raps)
        for coverage, by_size in method.measured.items()
        for scores in by_size.values()
    ]


def assert_covered(sets: PredictionSets, images: int) -> None:
    """Coverage is within four standard errors of what was asked for; many images were fitted on as well."""
    for coverage, scores in all_measured(sets):
        assert abs(scores.coverage - coverage) < 4 * sqrt(2 * coverage * (1 - coverage) / images), scores


@pytest.mark.parametrize("members", [1, 3])
def test_sets_cover_fresh_images(members: int) -> None:
    assert_covered(fit(draw(members, 4000, 1), draw(members, 4000, 2)), 4000)


def test_a_network_that_is_wrong_about_its_confidence_is_covered() -> None:
    assert_covered(fit(draw(2, 4000, 1), draw(2, 4000, 2), temperature=0.3), 4000)


def test_a_class_that_dominates_is_covered() -> None:
    outputs = draw(2, 4000, 1, skew=7)
    assert (outputs.targets == 0).float().mean() > 0.85
    sets = fit(outputs, draw(2, 4000, 2, skew=7))
    for coverage, scores in all_measured(sets):
        error = sqrt(2 * coverage * (1 - coverage) / 4000)
        assert scores.coverage > coverage - 4 * error
        assert scores.coverage < coverage + 4 * error or scores.size == 1


def test_choosing_everything_on_the_same_images_leaves_fresh_ones_covered() -> None:
    """Temperatures, the penalty, the free classes and the thresholds come from 500 images, 12 times."""
    coverages = torch.zeros(len(COVERAGES), 2)
    for seed in range(12):
        val = draw(2, 500, 2 * seed)
        test = draw(2, 500, 2 * seed + 1)
        calibration, _ = calibrate(2 * test.logits, test.targets, fit_on=Outputs(2 * val.logits, val.targets))
        sets = calibration.prediction_sets
        for index, coverage in enumerate(COVERAGES):
            for column, method in enumerate((sets.lac, sets.raps)):
                coverages[index, column] += method.measured[coverage][2].coverage / 12
    for coverage, pair in zip(COVERAGES, coverages.tolist(), strict=True):
        assert pair == pytest.approx([coverage] * 2, abs=4 * sqrt(2 * coverage * (1 - coverage) / (12 * 400)))


@pytest.mark.parametrize("members", [1, 2])
def test_without_validation_images_each_half_measures_the_others_sets(members: int) -> None:
    outputs = draw(members, 600, 3)
    calibration, _ = calibrate(outputs.logits, outputs.targets)
    first = one_in(2, outputs.targets)
    halves = [select(outputs, first), select(outputs, ~first)]
    scores = []
    for own, other in (halves, halves[::-1]):
        alone, _ = calibrate(other.logits, other.targets, fit_on=own)
        scores.append(alone.prediction_sets)
        assert alone.prediction_sets.lac.images == len(own.targets)
    assert calibration.prediction_sets.lac.images == 600
    for method in ("lac", "raps"):
        for coverage, by_size in getattr(calibration.prediction_sets, method).measured.items():
            for size, measured in by_size.items():
                each = [getattr(half, method).measured[coverage][size] for half in scores]
                weights = [len(halves[1].targets) / 600, len(halves[0].targets) / 600]
                for name in ("coverage", "size", "empty"):
                    mean = sum(w * getattr(one, name) for w, one in zip(weights, each, strict=True))
                    assert getattr(measured, name) == pytest.approx(mean, abs=3e-5)
    for one in ("lac", "raps"):
        fewest = min(getattr(half, one).images for half in scores)
        assert getattr(calibration.prediction_sets, one).images_when_measured == fewest
    assert scores[0].raps.images_when_measured == scores[0].raps.images
    whole, _ = calibrate(outputs.logits, outputs.targets, fit_on=outputs)
    assert calibration.prediction_sets.raps.thresholds == whole.prediction_sets.raps.thresholds


def test_measured_scores_are_those_of_the_sets() -> None:
    outputs = draw(2, 300, 4)
    held_out = draw(2, 200, 5)
    sets = fit(outputs, held_out)
    for method in (sets.lac, sets.raps):
        for coverage, by_size in method.thresholds.items():
            for size, subsets in member_subsets(2).items():
                found = [
                    (target in one, len(one), not one)
                    for subset in subsets
                    for row, target in zip(
                        method.scores(probabilities(held_out, subset)).tolist(),
                        held_out.targets.tolist(),
                        strict=True,
                    )
                    for one in [{index for index, score in enumerate(row) if score <= by_size[size]}]
                ]
                means = [sum(values) / len(found) for values in zip(*found, strict=True)]
                measured = method.measured[coverage][size]
                assert [measured.coverage, measured.size, measured.empty] == pytest.approx(means, abs=1e-5)


def test_thresholds_are_quantiles_over_all_choices_of_members() -> None:
    """Those of RAPS come from the images that did not choose its penalty."""
    outputs = draw(3, 250, 6)
    sets = fit(outputs)
    others = select(outputs, ~one_in(5, outputs.targets))
    assert (sets.lac.images, sets.raps.images) == (250, len(others.targets))
    assert 195 <= sets.raps.images <= 200
    for method, images in ((sets.lac, outputs), (sets.raps, others)):
        for coverage, by_size in method.thresholds.items():
            for size, subsets in member_subsets(3).items():
                scores = torch.cat([method.scores(probabilities(images, subset)) for subset in subsets])
                right = scores.gather(1, images.targets.repeat(len(subsets))[:, None])[:, 0]
                threshold = conformal_threshold(right, len(images.targets), coverage)
                assert threshold is not None
                assert 0 <= by_size[size] - threshold <= 1e-8


def test_a_larger_coverage_has_larger_sets() -> None:
    for method in (lambda sets: sets.lac, lambda sets: sets.raps):
        fitted = method(fit(draw(2, 1000, 7)))
        for size in (1, 2):
            thresholds = [fitted.thresholds[coverage][size] for coverage in COVERAGES]
            assert thresholds == sorted(set(thresholds))


def test_an_accurate_network_has_empty_lac_sets_so_that_coverage_is_exact() -> None:
    sets = fit(draw(1, 4000, 1, scale=30), draw(1, 4000, 2, scale=30))
    lac = sets.lac.measured[0.9][1]
    assert lac.coverage == pytest.approx(0.9, abs=4 * sqrt(2 * 0.09 / 4000))
    assert lac.empty > 0.02
    raps = sets.raps.measured[0.9][1]
    assert (raps.empty, raps.size) == (0, 1)
    assert raps.coverage > 0.92, "top-1 accuracy, which no smaller set has"


@pytest.mark.parametrize(
    ("images", "finite"), [(98, [0.9, 0.95]), (99, [0.9, 0.95, 0.99]), (9, [0.9]), (8, [])]
)
def test_too_few_images_give_sets_of_all_classes(images: int, finite: list[float]) -> None:
    sets = fit(draw(2, images, 8), draw(2, 50, 9))
    for coverage in COVERAGES:
        for size in (1, 2):
            assert (sets.lac.thresholds[coverage][size] < 1) == (coverage in finite)
            if coverage not in finite:
                assert sets.lac.measured[coverage][size] == SetScores(coverage=1, size=CLASSES, empty=0)
                assert sets.raps.measured[coverage][size] == SetScores(coverage=1, size=CLASSES, empty=0)


@pytest.mark.parametrize("seed", [21, 22])
def test_rare_classes_are_covered_like_frequent_ones(seed: int) -> None:
    """With shares of their own, rare classes, which are harder here, would be missing from the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(20).repeat_interleave(20), torch.arange(20, 420)])
    easy = torch.nn.functional.one_hot(targets, 420).float() * torch.where(targets < 20, 12.0, 4.0)[:, None]
    fitted, other = (
        Outputs((easy + torch.randn(800, 420, generator=generator))[None], targets, "test") for _ in range(2)
    )
    sets = fit(fitted, other)
    assert sets.raps.images == 640
    for coverage in (0.9, 0.95):
        assert sets.raps.measured[coverage][1].coverage > coverage - 4 * sqrt(
            2 * coverage * (1 - coverage) / 640
        )


def test_a_single_image_leaves_none_to_fit_raps_on() -> None:
    outputs = draw(2, 400, 10)
    sets = fit(select(outputs, one_in(400, outputs.targets)))
    assert sets.raps.images == 0
    assert set(sets.raps.thresholds[0.9].values()) == {1 + sets.raps.penalty * CLASSES}
    assert all(scores.size == CLASSES for scores in sets.raps.measured[0.9].values())


def test_the_penalty_and_free_classes_give_the_smallest_sets_on_the_images_that_choose_them() -> None:
    outputs = draw(2, 2000, 11, scale=4)
    tuning = select(outputs, one_in(5, outputs.targets))
    likely = probabilities(tuning, (0, 1))

    def sizes(penalty: float, free_classes: int) -> float:
        scores = raps_scores(likely, penalty, free_classes)
        right = scores.gather(1, tuning.targets[:, None])[:, 0]
        limits = [right.sort().values[ceil((len(right) + 1) * coverage) - 1] for coverage in COVERAGES]
        return sum(float((scores <= limit).sum(-1).double().mean()) for limit in limits)

    raps = fit(outputs).raps
    ranks = (likely.argsort(dim=-1, descending=True) == tuning.targets[:, None]).long().argmax(-1) + 1
    needed = {int(ranks.sort().values[ceil((len(ranks) + 1) * c) - 1]) for c in COVERAGES}
    assert len(needed) > 1
    assert raps.free_classes in needed
    assert raps.penalty > PENALTIES[0], "or choosing none would do as well"
    assert sizes(raps.penalty, raps.free_classes) == min(
        sizes(penalty, free) for penalty in PENALTIES for free in needed
    )


@pytest.mark.parametrize(
    ("images", "choices", "coverage"),
    [(40, 1, 0.9), (99, 1, 0.99), (20, 3, 0.9), (19, 6, 0.95), (1000, 1, 0.95)],
)
def test_the_threshold_is_the_smallest_whose_share_covers(images: int, choices: int, coverage: float) -> None:
    """A score's share is 1 / (choices × (images + 1)); the rest, 1 / (images + 1), is beyond all scores."""
    scores = torch.randn(images * choices, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    threshold = conformal_threshold(scores, images, coverage)
    assert threshold is not None
    share = 1 / (choices * (images + 1))
    assert float((scores <= threshold).sum()) * share >= coverage - 1e-12
    assert float((scores < threshold).sum()) * share < coverage - 1e-12


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19), (0.99, 99)])
@pytest.mark.parametrize("choices", [1, 4])
def test_fewer_images_than_a_coverage_needs_have_no_threshold(
    coverage: float, needed: int, choices: int
) -> None:
    scores = torch.arange(float(needed * choices))
    assert conformal_threshold(scores, needed, coverage) == scores[-1]
    assert conformal_threshold(scores[choices:], needed - 1, coverage) is None
    assert conformal_threshold(scores[:0], 0, coverage) is None


def test_lac_scores_are_the_probabilities_of_another_class() -> None:
    assert lac_scores(torch.tensor([[0.7, 0.2, 0.1]]))[0].tolist() == pytest.approx([0.3, 0.8, 0.9])


@pytest.mark.parametrize(("penalty", "free_classes"), [(0.0, 1), (0.1, 1), (0.01, 3)])
def test_raps_scores_sum_the_likelier_classes_and_a_penalty(penalty: float, free_classes: int) -> None:
    rows = [*draw(1, 20, 12).logits[0].double().softmax(-1).tolist(), [0.25, 0.0, 0.25, 0.0, 0.5, 0.0, 0.0]]
    scores = raps_scores(torch.tensor(rows, dtype=torch.float64), penalty, free_classes)
    for row, found in zip(rows, scores.tolist(), strict=True):
        order = sorted(range(CLASSES), key=lambda index: (-row[index], index))
        for rank, index in enumerate(order, start=1):
            likelier = sum(row[other] for other in order[: rank - 1])
            expected = likelier + penalty * max(0, rank - free_classes)
            assert found[index] == pytest.approx(expected, abs=1e-12)
        assert found[order[0]] == 0


def test_methods_score_by_their_own_figures() -> None:
    some = draw(1, 5, 13).logits[0].double().softmax(-1)
    assert torch.equal(Lac(1, {}).scores(some), lac_scores(some))
    assert torch.equal(Raps(1, 0.2, 2, {}).scores(some), raps_scores(some, 0.2, 2))
