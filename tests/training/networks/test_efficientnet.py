from collections.abc import Callable

import pytest
import torch
from torch import nn

from coserve_training.networks import member_network
from coserve_training.networks.efficientnet import EfficientNet, InvertedBottleneck
from coserve_training.networks.layers import DropPath, SqueezeExcitation


def on_meta(name: str, split: int = 1, image_size: int | None = None) -> EfficientNet:
    with torch.device("meta"):
        network = member_network(name, split, image_size=image_size).build(1000)
    assert isinstance(network, EfficientNet)
    return network


def blocks(network: EfficientNet) -> list[InvertedBottleneck]:
    return [module for module in network.modules() if isinstance(module, InvertedBottleneck)]


@pytest.mark.parametrize(("name", "millions"), [("efficientnet_b0", 5.3), ("efficientnet_b1", 7.8),
    ("efficientnet_b2", 9.2), ("efficientnet_b3", 12), ("efficientnet_b4", 19), ("efficientnet_b5", 30),
    ("efficientnet_b6", 43), ("efficientnet_b7", 66)])  # fmt: skip
def test_parameters_agree_with_the_efficientnet_paper(name: str, millions: float) -> None:
    # arXiv 1905.11946, table 2.
    parameters = sum(parameter.numel() for parameter in on_meta(name).parameters()) / 1e6
    assert parameters == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(("split", "channels"), [
    (1, [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320, 1280]),
    (2, [24, 12, 16, 16, 24, 24, 56, 56, 56, 80, 80, 80, 136, 136, 136, 136, 224, 920]),
    (4, [16, 12, 16, 16, 20, 20, 40, 40, 40, 56, 56, 56, 96, 96, 96, 96, 160, 640]),
])  # fmt: skip
def test_channels_of_members(split: int, channels: list[int]) -> None:
    network = on_meta("efficientnet_b0", split)
    narrow = [block.layers[-2].out_channels for block in blocks(network)]
    assert [network[0][0].out_channels, *narrow, network[2][0].out_channels] == channels


def test_wider_variants_round_to_the_split_s_divisor() -> None:
    # Multiples of 8: 112 · 1.4 = 156.8 and 192 · 1.4 = 268.8. Multiples of 4: 80 · 1.4 = 112 and
    # 136 · 1.4 = 190.4.
    for split, stages in ((1, (160, 272)), (2, (112, 192))):
        widths = {block.layers[-2].out_channels for block in blocks(on_meta("efficientnet_b4", split))}
        assert widths.issuperset(stages), widths


def test_squeezing_counts_the_channels_into_the_block() -> None:
    for block in blocks(on_meta("efficientnet_b0", 2)):
        (excitation,) = [layer for layer in block.layers if isinstance(layer, SqueezeExcitation)]
        first = next(layer for layer in block.layers if isinstance(layer, nn.Conv2d))
        assert excitation.squeeze.out_channels == max(1, first.in_channels // 4)
        assert isinstance(excitation.activation, nn.SiLU)


@pytest.mark.parametrize(("image_size", "positions"), [(32, 8), (64, 16), (128, 4), (224, 7), (None, 7)])
def test_small_images_keep_more_of_their_resolution(image_size: int | None, positions: int) -> None:
    network = on_meta("efficientnet_b0", image_size=image_size)
    size = image_size or 224
    with torch.no_grad():
        features = nn.Sequential(*list(network)[:3])(torch.empty(1, 3, size, size, device="meta"))
    assert features.shape == (1, 1280, positions, positions)


def test_image_size_changes_no_weights() -> None:
    small, large = (on_meta("efficientnet_b0", 2, image_size=size).state_dict() for size in (32, 224))
    assert {name: tensor.shape for name, tensor in small.items()} == {
        name: tensor.shape for name, tensor in large.items()
    }


@pytest.mark.parametrize(("name", "split", "dropout", "drop_path"), [
    ("efficientnet_b0", 1, 0.2, 0.2), ("efficientnet_b3", 4, 0.15, 0.1), ("efficientnet_b7", 4, 0.25, 0.1),
])  # fmt: skip
def test_variants_drop_by_the_root_of_the_split(
    name: str, split: int, dropout: float, drop_path: float
) -> None:
    network = on_meta(name, split)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [dropout]
    rates = [module.probability for module in network.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(drop_path)


def test_batch_norm_is_efficientnet_s() -> None:
    norms = [module for module in on_meta("efficientnet_b0").modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.usefixtures("shallow_efficientnet")
def test_onnx_computes_the_same(split: int, onnx_difference: Callable[..., float]) -> None:
    assert onnx_difference(member_network("efficientnet_b0", split, image_size=16).build(7), 16) < 1e-4


def test_a_step_in_bf16(train_a_step: Callable[..., None]) -> None:
    train_a_step(member_network("efficientnet_b0", 4, image_size=16, drop_path=0).build(7))
