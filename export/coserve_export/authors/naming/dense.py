"""DenseNet, which the authors have in two implementations with names of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from coserve_export.authors.naming import Names
from coserve_training.networks.densenet import DenseBlock


@dataclass(frozen=True)
class _Style:
    """How an implementation names layers, with `{}` for the numbers of block and layer."""

    stem: Sequence[str]
    layer: str
    first: int
    transition: str
    final: str
    norm: str
    conv: str
    classifier: str


_OFFICIAL = _Style(
    stem=("features.conv0", "features.norm0"),
    layer="features.denseblock{}.denselayer{}",
    first=1,
    transition="features.transition{}",
    final="features.norm_final",
    norm="norm",
    conv="conv",
    classifier="classifier",
)
_PLAIN = _Style(
    stem=("conv1",),
    layer="block{}.layer.{}",
    first=0,
    transition="trans{}",
    final="bn1",
    norm="bn1",
    conv="conv1",
    classifier="fc",
)


def official_names(network: nn.Sequential) -> Names:
    """Name the layers of the implementation with a norm after the first convolution."""
    return _names(network, _OFFICIAL)


def plain_names(network: nn.Sequential) -> Names:
    """Name the layers of the other implementation."""
    return _names(network, _PLAIN)


def _names(network: nn.Sequential, style: _Style) -> Names:
    *layers, _, classifier = network
    final = layers.pop()
    weighted = [layer for layer in layers if not isinstance(layer, nn.ReLU)]
    yield from zip(style.stem, weighted, strict=False)
    number = 0
    for layer in weighted[len(style.stem) :]:
        if isinstance(layer, DenseBlock):
            number += 1
            yield from _layer_names(layer, number, style)
        else:
            norm, _, conv, _ = cast(nn.Sequential, layer)
            transition = style.transition.format(number)
            yield f"{transition}.{style.norm}", norm
            yield f"{transition}.{style.conv}", conv
    yield style.final, final
    yield style.classifier, cast(nn.Sequential, classifier)[-1]


def _layer_names(block: DenseBlock, number: int, style: _Style) -> Names:
    norm = style.norm.removesuffix("1")
    for index, layer in enumerate(block.layers, start=style.first):
        prefix = style.layer.format(number, index)
        for position in (1, 2):
            yield f"{prefix}.{norm}{position}", getattr(layer, f"norm{position}")
            yield f"{prefix}.conv{position}", getattr(layer, f"conv{position}")
