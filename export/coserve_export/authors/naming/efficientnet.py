"""EfficientNet, which the authors have in two implementations with names of their own."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from coserve_export.authors.naming import Names
from coserve_training.networks.efficientnet import InvertedBottleneck, block_counts
from coserve_training.networks.layers import SqueezeExcitation

_FLAT = (
    "_expand_conv",
    "_bn0",
    "_depthwise_conv",
    "_bn1",
    "_project_conv",
    "_bn2",
    "_se_reduce",
    "_se_expand",
)
_STAGED = (
    "expansion.conv_block.conv",
    "expansion.conv_block.norm",
    "depth_wise.conv_block.conv",
    "depth_wise.conv_block.norm",
    "point_wise.conv",
    "point_wise.norm",
    "se_block.channel_se.linear1",
    "se_block.channel_se.linear2",
)


def flat_names(network: nn.Sequential) -> Names:
    """Name the layers of the implementation for ImageNet, whose blocks are numbered throughout."""
    stem, blocks, head, classifier = cast("tuple[nn.Sequential, ...]", tuple(network))
    yield "_conv_stem", stem[0]
    yield "_bn0", stem[1]
    for index, block in enumerate(blocks):
        for name, layer in _layers(block, _FLAT):
            yield f"_blocks.{index}.{name}", layer
    yield "_conv_head", head[0]
    yield "_bn1", head[1]
    yield "_fc", classifier[-1]


def staged_names(network: nn.Sequential, variant: int) -> Names:
    """Name the layers of the other implementation, whose blocks are numbered in each stage."""
    stem, blocks, head, classifier = cast("tuple[nn.Sequential, ...]", tuple(network))
    yield "mod1.conv_block.conv", stem[0]
    yield "mod1.conv_block.norm", stem[1]
    remaining = iter(blocks)
    for stage, count in enumerate(block_counts(variant), start=2):
        for number in range(1, count + 1):
            block = next(remaining)
            prefix = f"mod{stage}.block{number}"
            for name, layer in _layers(block, _STAGED):
                yield f"{prefix}.{name}", layer
    yield "last_feat.conv_block.conv", head[0]
    yield "last_feat.conv_block.norm", head[1]
    yield "classifier", classifier[-1]


def _layers(block: nn.Module, names: Sequence[str]) -> Names:
    """Yield a block's convolutions and their norms, then its excitation's layers, by these names.

    The first two are missing in a block that does not widen.
    """
    layers = cast(InvertedBottleneck, block).layers
    (excitation,) = (layer for layer in layers if isinstance(layer, SqueezeExcitation))
    weighted: list[nn.Module] = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    weighted += [excitation.squeeze, excitation.excite]
    yield from zip(names[-len(weighted) :], weighted, strict=True)
