import pytest
import torch
from torch import nn

from coserve_training.networks import member_network
from coserve_training.networks.bottleneck import Bottleneck
from coserve_training.networks.layers import DropPath
from coserve_training.networks.wide_resnet import BasicBlock


@pytest.mark.parametrize("name", ["resnet20", "se_resnet20", "resnext29_4x4d", "wide_resnet10_2"])
@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 32, 40])
def test_images_of_any_size_become_logits(name: str, split: int, size: int) -> None:
    network = member_network(name, split).build(num_classes=7).eval()
    with torch.inference_mode():
        logits = network(torch.randn(3, 3, size, size))
    assert logits.shape == (3, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "block", "last_norm"), [
    ("resnet20", Bottleneck, "norm3"),
    ("wide_resnet10_2", BasicBlock, "norm2"),
])  # fmt: skip
def test_residual_branches_start_at_zero(name: str, block: type, last_norm: str) -> None:
    network = member_network(name, 1).build(10)
    blocks = [module for module in network.modules() if isinstance(module, block)]
    assert blocks
    assert all((getattr(module, last_norm).weight == 0).all() for module in blocks)


def test_members_differ_from_the_start() -> None:
    first, second = (member_network("wide_resnet10_2", 2).build(10) for _ in range(2))
    assert not torch.equal(first[0][0].weight, second[0][0].weight)


@pytest.mark.parametrize("name", ["resnet20", "resnext29_4x4d", "wide_resnet16_2", "wide_resnet50_2"])
def test_members_drop_branches_and_features_by_the_root_of_their_number(name: str) -> None:
    with torch.device("meta"):
        network = member_network(name, 4, dropout=0.2, drop_path=0.4).build(10)
    rates = [module.probability for module in network.modules() if isinstance(module, DropPath)]
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.2 / len(rates))
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.1]


def test_a_dropped_branch_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    dropped = drop(torch.ones(10_000, 2, 1, 1))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (dropped[:, 0] == dropped[:, 1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(2, 1, 1, 1)), torch.ones(2, 1, 1, 1))
