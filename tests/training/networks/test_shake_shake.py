import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from coserve_training.counting import cost
from coserve_training.errors import NetworkError
from coserve_training.networks import member_network
from coserve_training.networks.layers import DropPath
from coserve_training.networks.shake_shake import ShakeShake, ShiftedShortcut


@pytest.mark.parametrize(
    ("split", "parameters", "multiply_adds"), [(1, 26.2, 3.78), (2, 23.3, 3.38), (4, 26.3, 3.82)]
)
def test_counts_agree_with_the_paper(split: int, parameters: float, multiply_adds: float) -> None:
    total = cost("shake_resnet26_2x96d", split, 10, 32).total
    assert total.parameters == pytest.approx(parameters * 1e6, abs=0.051e6)
    assert total.multiply_adds == pytest.approx(multiply_adds * 1e9, abs=0.0051e9)


def test_counts_agree_with_the_shake_shake_paper() -> None:
    # arXiv 1705.07485, table 1: 2.9 M parameters for 2x32d, 11.7 M for 2x64d.
    assert cost("shake_resnet26_2x32d", 1, 10, 32).total.parameters == pytest.approx(2.9e6, abs=0.05e6)
    assert cost("shake_resnet26_2x64d", 1, 10, 32).total.parameters == pytest.approx(11.7e6, abs=0.06e6)


@pytest.mark.parametrize("split", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [16, 27])
def test_images_of_any_size_become_logits(split: int, size: int, makes_logits: Callable[..., None]) -> None:
    makes_logits(member_network("shake_resnet8_2x96d", split).build(7), size)


@pytest.mark.parametrize(("split", "size"), [(1, 16), (2, 15), (4, 18)])
def test_onnx_computes_the_same(split: int, size: int, onnx_difference: Callable[..., float]) -> None:
    assert onnx_difference(member_network("shake_resnet8_2x96d", split).build(7), size) < 1e-4


def test_a_step_in_bf16(train_a_step: Callable[..., None]) -> None:
    train_a_step(member_network("shake_resnet14_2x8d", 1, drop_path=0.2).build(10))


def test_branches_are_mixed_per_image_and_gradients_otherwise() -> None:
    torch.manual_seed(0)
    first = torch.ones(2000, 2, 1, 3, requires_grad=True)
    second = torch.zeros(2000, 2, 1, 3, requires_grad=True)
    mixed = ShakeShake()(first, second)
    alpha = mixed[:, 0, 0, 0].detach()
    assert (mixed == alpha.view(-1, 1, 1, 1)).all()
    assert 0 <= alpha.min() < 0.05 < 0.95 < alpha.max() <= 1
    assert alpha.mean() == pytest.approx(0.5, abs=0.03)
    mixed.sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert torch.allclose(first.grad + second.grad, torch.ones_like(first))
    beta = first.grad[:, 0, 0, 0]
    assert (first.grad == beta.view(-1, 1, 1, 1)).all()
    assert beta.mean() == pytest.approx(0.5, abs=0.03)
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.1


def test_the_factors_of_both_branches_add_up_to_one() -> None:
    x = torch.randn(50, 2, 3, 3)
    assert torch.allclose(ShakeShake()(x, x), x, atol=1e-6)


def test_branches_are_averaged_in_evaluation() -> None:
    first, second = torch.randn(2, 4, 2, 3, 3)
    assert torch.allclose(ShakeShake().eval()(first, second), (first + second) / 2)


def test_the_shortcut_s_second_half_sees_the_pixels_below_and_right() -> None:
    shortcut = ShiftedShortcut(1, 2, stride=2).eval()
    nn.init.ones_(shortcut.straight.weight)
    nn.init.ones_(shortcut.shifted.weight)
    pixels = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    with torch.inference_mode():
        straight, shifted = shortcut(pixels)[0]
    assert straight.tolist() == [pytest.approx([1, 3], rel=1e-4), pytest.approx([9, 11], rel=1e-4)]
    assert shifted.tolist() == [pytest.approx([6, 8], rel=1e-4), pytest.approx([14, 16], rel=1e-4)]


def test_members_drop_branches_and_features_by_the_root_of_their_number() -> None:
    with torch.device("meta"):
        member = member_network("shake_resnet14_2x96d", 4, dropout=0.2, drop_path=0.4).build(10)
    rates = [module.probability for module in member.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.2 * (block + 1) / 6 for block in range(6)])
    assert [module.p for module in member.modules() if isinstance(module, nn.Dropout)] == [0.1]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("shake_resnet27_2x96d", 1, "shake_resnet27_2x96d: depth must be 6n + 2"),
        ("shake_resnet2_2x96d", 1, "shake_resnet2_2x96d: depth must be 6n + 2"),
        ("shake_resnet26_2x7d", 1, "width must be even and at least 2, not 7"),
        ("shake_resnet26_2x0d", 1, "width must be even and at least 2, not 0"),
        ("shake_resnet26_3x96d", 1, "unknown network"),
        ("shake_resnet26_2x96d", 3, "shake_resnet26_2x96d: split must be one of 1, 2, 4, 8, not 3"),
        ("shake_resnet26_2x64d", 2, "shake_resnet26_2x64d: can only be divided from a width of 96"),
    ],
)
def test_impossible_networks_are_named(name: str, split: int, message: str) -> None:
    with pytest.raises(NetworkError, match=re.escape(message)):
        member_network(name, split)
