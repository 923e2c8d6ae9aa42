import re
from collections.abc import Callable

import pytest
import torch

from coserve_training.counting import cost
from coserve_training.errors import NetworkError
from coserve_training.networks import member_network
from coserve_training.networks.pyramidnet import PyramidBottleneck, ShakeDrop


@pytest.mark.parametrize(
    ("classes", "split", "parameters", "multiply_adds"),
    [
        # The paper's table for CIFAR-100 prints 26.8, but its table for CIFAR-10 prints 26.2 with the same
        # multiply-adds, and 90 more classes add only 0.08 million parameters.
        (100, 1, 26.3, 4.55),
        (100, 2, 28.9, 5.24),
        (100, 4, 32.8, 6.33),
        (10, 1, 26.2, 4.55),
    ],
)
def test_counts_agree_with_the_paper(
    classes: int, split: int, parameters: float, multiply_adds: float
) -> None:
    total = cost("pyramidnet272", split, classes, 32).total
    assert total.parameters == pytest.approx(parameters * 1e6, abs=0.051e6)
    assert total.multiply_adds == pytest.approx(multiply_adds * 1e9, abs=0.0051e9)


def test_members_are_narrower_and_disturbed_less() -> None:
    with torch.device("meta"):
        member = member_network("pyramidnet272", 4).build(100)
    bottlenecks = [module for module in member.modules() if isinstance(module, PyramidBottleneck)]
    assert len(bottlenecks) == 90
    assert [bottleneck.conv2.out_channels for bottleneck in bottlenecks][-1] == 116
    rates = [bottleneck.drop.probability for bottleneck in bottlenecks]
    assert rates == pytest.approx([0.25 * (block + 1) / 90 for block in range(90)])
    assert str(member_network("pyramidnet272", 2)) == "pyramidnet272_141.4"


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 27, 30])
def test_images_of_any_size_become_logits(split: int, size: int, makes_logits: Callable[..., None]) -> None:
    makes_logits(member_network("pyramidnet20_16", split).build(7), size)


@pytest.mark.parametrize(("split", "size"), [(1, 16), (2, 15), (4, 18)])
def test_onnx_computes_the_same(split: int, size: int, onnx_difference: Callable[..., float]) -> None:
    assert onnx_difference(member_network("pyramidnet11_16", split).build(7), size) < 1e-4


def test_a_step_in_bf16(train_a_step: Callable[..., None]) -> None:
    train_a_step(member_network("pyramidnet20_16", 1).build(10))


def test_a_block_adds_to_the_front_of_a_wider_shortcut() -> None:
    block = PyramidBottleneck(8, 3, stride=2, drop_path=0.0).eval()
    torch.nn.init.zeros_(block.norm3.weight)
    x = torch.arange(8 * 16.0).view(1, 8, 4, 4)
    with torch.inference_mode():
        y = block(x)
    assert y.shape == (1, 12, 2, 2)
    assert y[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert not y[:, 8:].any()


def test_shake_drop_keeps_its_mean_and_disturbs_whole_batches() -> None:
    torch.manual_seed(0)
    drop = ShakeDrop(0.3)
    x = torch.ones(8, 2, 3, 3)
    batches = torch.stack([drop(x) for _ in range(3000)])
    factors = batches[:, :, :1, :1, :1]
    assert (batches == factors).all()
    kept = (factors == 1).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert kept.all(1).float().mean() == pytest.approx(0.7, abs=0.03)
    disturbed = factors.flatten(1)[~kept.any(1)]
    assert (disturbed.abs() <= 1).all()
    assert disturbed.min() < -0.9 < 0.9 < disturbed.max()
    assert disturbed.std(1).min() > 0, "one factor for all images"
    assert factors.mean() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(drop.eval()(x), 0.7 * x)


def test_shake_drop_disturbs_gradients_by_other_factors() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1, 1, 1, requires_grad=True)
    y = ShakeDrop(1.0)(x)
    y.sum().backward()
    assert x.grad is not None
    assert 0 <= x.grad.min() < 0.05 < 0.95 < x.grad.max() <= 1
    assert abs(torch.corrcoef(torch.stack([x.grad.flatten(), y.detach().flatten()]))[0, 1]) < 0.1


def test_an_undisturbed_branch_has_its_own_gradient() -> None:
    x = torch.ones(4, 1, 1, 1, requires_grad=True)
    ShakeDrop(1e-9)(x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 1).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pyramidnet270", "pyramidnet270: depth must be 9n + 2"),
        ("pyramidnet2_16", "pyramidnet2_16: depth must be 9n + 2"),
        ("pyramidnet29_0", "pyramidnet29_0: alpha must be at least 1, not 0"),
    ],
)
def test_impossible_networks_are_named(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=re.escape(message)):
        member_network(name, 1)
