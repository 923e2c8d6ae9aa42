import pytest
import torch

from coserve_training.networks import member_network
from coserve_training.networks.bottleneck import Bottleneck
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
