import pytest
import torch

from coserve_training.views.mixup import mix_up


def test_members_share_the_pairs_and_the_weight() -> None:
    torch.manual_seed(6)
    views = [torch.randn(9, 3, 4, 4), torch.randn(9, 3, 4, 4)]
    targets = torch.arange(9) % 5
    blended, probabilities = mix_up(views, targets, 5, 1.0)
    assert torch.allclose(probabilities.sum(-1), torch.ones(9))
    one_hot = torch.nn.functional.one_hot(targets, 5).float()
    weight = (probabilities * one_hot).sum(-1).min().item()
    # The same pairing explains both members' views and the classes.
    partners = [
        {
            partner
            for partner in range(9)
            if torch.allclose(blended[member][image], weight * view[image] + (1 - weight) * view[partner])
        }
        for image in range(9)
        for member, view in enumerate(views)
    ]
    for first, second in zip(partners[::2], partners[1::2], strict=True):
        assert first == second
        assert len(first) == 1
    paired = [next(iter(first)) for first in partners[::2]]
    assert sorted(paired) == list(range(9))
    assert torch.allclose(probabilities, weight * one_hot + (1 - weight) * one_hot[paired], atol=1e-6)


def test_the_weight_follows_the_beta_distribution() -> None:
    torch.manual_seed(7)
    targets = torch.tensor([0, 1])
    weights = torch.stack([mix_up([torch.zeros(2, 3, 1, 1)], targets, 2, 0.2)[1][0, 0] for _ in range(2000)])
    edges = ((weights < 0.1) | (weights > 0.9)).float().mean().item()
    # Half of the pairings are of an image with itself, whose class keeps a probability of 1.
    ends = 0.6734  # probability of less than 0.1 or more than 0.9 under Beta(0.2, 0.2)
    assert edges == pytest.approx(0.5 + 0.5 * ends, abs=0.04)


def test_classes_that_the_batch_lacks_have_a_probability_too() -> None:
    _, probabilities = mix_up([torch.zeros(2, 3, 1, 1)], torch.tensor([0, 1]), 7, 1.0)
    assert probabilities.shape == (2, 7)
