import numpy as np
import pytest
import torch
from torch import Tensor

from coserve_training.runs.calibrate import TEMPERATURES, calibrate, fit_temperature
from coserve_training.runs.evaluate import score, score_members
from coserve_training.runs.subsets import one_in


def drawn(logits: Tensor, seed: int = 0) -> Tensor:
    """Draw classes `[N]` from the softmax of logits `[N, C]`, so that the temperature 1 is right."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def random_logits(*shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    honest = random_logits(20_000, 10)
    fitted = fit_temperature([honest * temperature], drawn(honest))
    assert fitted == pytest.approx(temperature, rel=0.02)


def test_the_temperature_minimises_the_likelihoods_mean_over_sets() -> None:
    sets = random_logits(3, 500, 7)
    targets = torch.arange(500) % 7
    sets[:, torch.arange(500), targets] += 3

    def nll(temperature: float) -> float:
        return sum(
            float(torch.nn.functional.cross_entropy(some.double() / temperature, targets)) for some in sets
        )

    fitted = fit_temperature(sets, targets)
    assert nll(fitted) < min(nll(fitted * 1.01), nll(fitted / 1.01))
    grid = np.geomspace(*TEMPERATURES, 400)
    assert nll(fitted) <= min(nll(float(temperature)) for temperature in grid)


def test_logits_beyond_the_range_give_its_ends() -> None:
    targets = torch.arange(40) % 4
    right = torch.nn.functional.one_hot(targets).float()
    assert fit_temperature([20 * right], targets) == TEMPERATURES[0]
    assert fit_temperature([-20 * right], targets) == TEMPERATURES[1]
    calibration, _ = calibrate(torch.stack([20 * right, 10 * right]), targets)
    assert calibration.bounded == [1, 2]
    assert calibration.nll_after <= calibration.nll_before < 1e-6


def test_every_subset_is_scored_and_calibrated_on_the_other_half() -> None:
    """Scores and temperatures equal those computed here for one subset at a time."""
    honest = random_logits(1200, 5)
    targets = drawn(honest)
    logits = torch.stack([3 * honest, 3 * honest + random_logits(1200, 5), 2 * honest])
    calibration, subsets = calibrate(logits, targets)
    assert [subset.members for subset in subsets] == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    first = one_in(2, targets)
    for subset in subsets:
        mean = logits[list(subset.members)].mean(0)
        plain = score(mean, targets)
        assert (subset.top1, subset.nll, subset.ece) == pytest.approx(
            (plain.top1, plain.nll, plain.ece), abs=1e-5
        )
        peers = [logits[list(s.members)].mean(0) for s in subsets if len(s.members) == len(subset.members)]
        divided = mean.clone()
        for half in (first, ~first):
            divided[~half] /= fit_temperature([peer[half] for peer in peers], targets[half])
        after = score(divided, targets)
        assert (subset.calibrated_nll, subset.calibrated_ece) == pytest.approx(
            (after.nll, after.ece), abs=1e-5
        )
    assert calibration.images == 1200
    assert calibration.temperatures.keys() == {1, 2, 3}
    assert calibration.temperatures[3] == fit_temperature([logits.mean(0)], targets)
    assert (calibration.nll_before, calibration.ece_after) == (subsets[-1].nll, subsets[-1].calibrated_ece)
    assert calibration.ece_after < calibration.ece_before / 3
    assert calibration.nll_after < calibration.nll_before


def test_disagreement_counts_images_and_pairs() -> None:
    votes = torch.tensor([[0, 1, 2, 0], [0, 1, 1, 1], [0, 2, 0, 0]])
    evaluation = score_members(
        torch.nn.functional.one_hot(votes, 3).float(), torch.zeros(4, dtype=torch.long)
    )
    assert evaluation.disagreement == 0.75
    assert evaluation.pairwise_disagreement == pytest.approx((2 / 4 + 2 / 4 + 3 / 4) / 3, abs=1e-6)
    alone = score_members(random_logits(1, 4, 3), torch.zeros(4, dtype=torch.long))
    assert (alone.disagreement, alone.pairwise_disagreement) == (0, 0)
