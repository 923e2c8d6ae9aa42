"""ResNet, ResNeXt, Wide ResNet, their SE variants and ResNeXSt."""

from collections.abc import Iterator
from typing import cast

from torch import nn

from coserve_export.authors.naming import Names, numbered
from coserve_training.networks.bottleneck import Bottleneck
from coserve_training.networks.layers import Reduce
from coserve_training.networks.resnexst import SplitAttentionBottleneck
from coserve_training.networks.wide_resnet import BasicBlock


def resnet_names(network: nn.Sequential) -> Names:
    """Name the layers of a network without squeeze-and-excitation."""
    stem, blocks, classifier = network
    for index, layer in enumerate(cast(nn.Sequential, stem)):
        yield f"layer0.{index}", layer
    yield from _block_names(cast(nn.Sequential, blocks))
    yield "fc", _linear(classifier)


def senet_names(network: nn.Sequential) -> Names:
    """Name the layers of a network with squeeze-and-excitation or split attention."""
    stem, blocks, classifier = network
    layers = cast(nn.Sequential, stem)
    for kind, name in ((nn.Conv2d, "conv"), (nn.BatchNorm2d, "bn")):
        for number, layer in enumerate((layer for layer in layers if isinstance(layer, kind)), start=1):
            yield f"layer0.{name}{number}", layer
    yield from _block_names(cast(nn.Sequential, blocks))
    yield "last_linear", _linear(classifier)


def _block_names(blocks: nn.Sequential) -> Names:
    starts = [any(isinstance(layer, Reduce) for layer in _shortcut(block)) for block in blocks]
    for stage, number, block in numbered(blocks, starts):
        prefix = f"layer{stage}.{number}"
        for name, layer in _layers_of(block):
            yield f"{prefix}.{name}", layer
        for index, layer in enumerate(_shortcut(block)):
            yield f"{prefix}.downsample.{index}", layer


def _shortcut(block: nn.Module) -> nn.Sequential:
    return cast(nn.Sequential, block.shortcut)


def _layers_of(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(block, BasicBlock):
        yield from (
            ("conv1", block.conv1),
            ("bn1", block.norm1),
            ("conv2", block.conv2),
            ("bn2", block.norm2),
        )
        return
    if isinstance(block, SplitAttentionBottleneck):
        attention = block.attention
        yield from (
            ("conv1", block.conv1),
            ("bn1", block.norm1),
            ("conv2.conv", attention.conv),
            ("conv2.bn0", attention.norm),
            ("conv2.fc1", attention.squeeze),
            ("conv2.bn1", attention.squeezed_norm),
            ("conv2.fc2", attention.excite),
            ("conv3", block.conv3),
            ("bn3", block.norm3),
        )
        return
    block = cast(Bottleneck, block)
    for number in (1, 2, 3):
        yield f"conv{number}", getattr(block, f"conv{number}")
        yield f"bn{number}", getattr(block, f"norm{number}")
    if not isinstance(block.excitation, nn.Identity):
        yield "se_module.fc1", block.excitation.squeeze
        yield "se_module.fc2", block.excitation.excite


def _linear(classifier: nn.Module) -> nn.Module:
    return cast(nn.Sequential, classifier)[-1]
