import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_training.loss import co_training_loss, jensen_shannon, mutual_kullback_leibler, warm_up_weight


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(-1)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 4), st.integers(1, 5), st.integers(2, 6), st.integers(0, 1000), st.floats(0.1, 5))
def test_divergence_is_the_entropy_of_the_mean_less_the_mean_entropy(
    members: int, batch: int, classes: int, seed: int, scale: float
) -> None:
    logits = torch.randn(members, batch, classes, generator=torch.Generator().manual_seed(seed)) * scale
    p = logits.double().softmax(-1)
    expected = (entropy(p.mean(0)) - entropy(p).mean(0)).mean()
    assert jensen_shannon(logits).item() == pytest.approx(expected.item(), abs=1e-5)


def test_divergence_is_zero_for_members_that_agree_and_log_s_for_members_that_exclude_each_other() -> None:
    same = torch.randn(1, 8, 10).expand(4, 8, 10)
    assert jensen_shannon(same).item() == pytest.approx(0, abs=1e-6)
    apart = (torch.eye(4) * 1000).unsqueeze(1)
    assert jensen_shannon(apart).item() == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_nan_in_loss_or_gradient_for_extreme_logits(dtype: torch.dtype) -> None:
    logits = (torch.eye(3).repeat(2, 1, 1) * 60000).to(dtype)
    logits[1] = logits[1].flip(0)
    logits.requires_grad_()
    loss = co_training_loss(logits, torch.tensor([0, 1, 2]), weight=0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_loss_is_the_sum_of_cross_entropies_plus_the_weighted_divergence() -> None:
    logits = torch.randn(3, 6, 5)
    targets = torch.randint(5, (6,))
    cross_entropies = sum(F.cross_entropy(member, targets) for member in logits)
    expected = cross_entropies + 0.3 * jensen_shannon(logits)
    assert co_training_loss(logits, targets, 0.3).item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_member_has_no_divergence() -> None:
    logits = torch.randn(1, 6, 5)
    targets = torch.randint(5, (6,))
    assert co_training_loss(logits, targets, 100.0).item() == pytest.approx(
        F.cross_entropy(logits[0], targets).item(), rel=1e-6
    )


def test_weight_warms_up_linearly_from_its_floor() -> None:
    assert warm_up_weight(0.5, 0, 40) == 0.005
    assert warm_up_weight(0.5, 20, 40) == pytest.approx(0.25)
    assert warm_up_weight(0.5, 100, 40) == 0.5
    assert warm_up_weight(0.5, 0, 0) == 0.5
    assert warm_up_weight(0.0, 10, 40) == 0.0


def test_mutual_kullback_leibler_against_a_loop_in_float64() -> None:
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reference = logits.clone().requires_grad_()
    log_p = reference.log_softmax(-1)
    pairs = [
        F.kl_div(log_p[i], log_p[j].detach(), reduction="batchmean", log_target=True)
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    expected = torch.stack(pairs).sum() / 2
    expected.backward()
    single = logits.float().requires_grad_()
    value = mutual_kullback_leibler(single)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(single.grad.double(), reference.grad, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("term", ["js", "kl"])
def test_extreme_logits_in_half_precision_stay_finite(term: Literal["js", "kl"]) -> None:
    logits = torch.tensor([[[3e4, -3e4, 0.0]], [[-3e4, 3e4, 0.0]]], dtype=torch.bfloat16, requires_grad=True)
    loss = co_training_loss(logits, torch.tensor([0]), 0.5, term)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_probabilities_as_targets_and_label_smoothing() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([0, 2, 1, 1])
    hard = co_training_loss(logits, targets, 0.5)
    assert co_training_loss(logits, F.one_hot(targets, 3).float(), 0.5).item() == pytest.approx(hard.item())
    smooth = F.one_hot(targets, 3) * 0.9 + 0.1 / 3
    smoothed = co_training_loss(logits, targets, 0.5, label_smoothing=0.1)
    assert co_training_loss(logits, smooth, 0.5).item() == pytest.approx(smoothed.item())
