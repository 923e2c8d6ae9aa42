import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from coserve_training.counting import cost
from coserve_training.errors import NetworkError
from coserve_training.networks import member_network, parse_network
from coserve_training.networks.densenet import DenseNet, DenseNetConfig


@pytest.mark.parametrize(
    ("split", "member", "parameters", "multiply_adds"),
    [(1, "densenet190", 25.8, 9.39), (2, "densenet190_28", 25.5, 9.24), (4, "densenet190_20", 26.3, 9.48)],
)
def test_counts_agree_with_the_paper(
    split: int, member: str, parameters: float, multiply_adds: float
) -> None:
    divided = cost("densenet190", split, 100, 32)
    assert divided.member_network == member
    assert divided.total.parameters == pytest.approx(parameters * 1e6, abs=0.051e6)
    assert divided.total.multiply_adds == pytest.approx(multiply_adds * 1e9, abs=0.0051e9)


def test_counts_agree_with_the_densenet_paper() -> None:
    # arXiv 1608.06993, table 2.
    assert cost("densenet100_12", 1, 10, 32).total.parameters == pytest.approx(0.8e6, abs=0.05e6)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 30, 32])
def test_images_of_any_size_become_logits(split: int, size: int, makes_logits: Callable[..., None]) -> None:
    makes_logits(member_network("densenet22_12", split).build(7), size)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_onnx_computes_the_same(split: int, onnx_difference: Callable[..., float]) -> None:
    assert onnx_difference(member_network("densenet16_12", split).build(7), 16) < 1e-4


def checkpointed(plain: DenseNet, config: DenseNetConfig) -> DenseNet:
    network = replace(config, memory_efficient=True).build(10)
    network.load_state_dict(plain.state_dict())
    return network


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Count the bytes of activations that autograd keeps between the forward and the backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.ndim == 4 and len(tensor) == len(images):
            storages[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = network(images)
    total = sum(storages.values())
    logits.sum().backward()
    return total


@pytest.mark.parametrize("autocast", [False, True])
def test_memory_efficient_training_has_the_same_results(autocast: bool) -> None:
    torch.manual_seed(0)
    config = parse_network("densenet22_12")
    assert isinstance(config, DenseNetConfig)
    plain = config.build(10)
    saving = checkpointed(plain, config)
    images = torch.randn(5, 3, 16, 16)
    for _ in range(2):
        for member in (plain, saving):
            optimizer = torch.optim.SGD(member.train().parameters(), 0.1)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = member(images).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    # This includes running statistics: a batch that is computed twice must count once.
    for name, value in plain.state_dict().items():
        assert torch.equal(value, saving.state_dict()[name]), name
    assert torch.equal(plain.eval()(images), saving.eval()(images))


def test_memory_efficient_training_keeps_less() -> None:
    config = parse_network("densenet40_12")
    assert isinstance(config, DenseNetConfig)
    plain = config.build(10)
    images = torch.randn(5, 3, 16, 16)
    assert saved_bytes(checkpointed(plain, config), images) < 0.6 * saved_bytes(plain, images)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_a_step_in_bf16(memory_efficient: bool, train_a_step: Callable[..., None]) -> None:
    config = parse_network("densenet16_12")
    assert isinstance(config, DenseNetConfig)
    train_a_step(replace(config, memory_efficient=memory_efficient).build(10))


def test_members_drop_features_by_the_root_of_their_number() -> None:
    member = member_network("densenet10_12", 4, dropout=0.2).build(10)
    assert [module.p for module in member.modules() if isinstance(module, nn.Dropout)] == [0.1]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("densenet121", 1, "densenet121: depth must be 6n + 4"),
        ("densenet4_12", 1, "densenet4_12: depth must be 6n + 4"),
        ("densenet100_0", 1, "densenet100_0: growth must be at least 1, not 0"),
        ("densenet22_2", 5, "densenet22_2: split must be at most 4, not 5"),
    ],
)
def test_impossible_networks_are_named(name: str, split: int, message: str) -> None:
    with pytest.raises(NetworkError, match=re.escape(message)):
        member_network(name, split)


def test_densenet_has_no_branches_to_drop() -> None:
    with pytest.raises(NetworkError, match="densenet190_20: has no residual branches to drop, so"):
        member_network("densenet190", 4, drop_path=0.2)
