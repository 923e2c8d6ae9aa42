"""DenseNet-BC for small images: each layer reads the outputs of all earlier layers of its block.

The paper is arXiv 1608.06993.
"""

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coserve_training.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import Classifier, conv1x1, conv3x3, initialise

DEFAULT_GROWTH = 40
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """A 1×1 convolution to `4 * growth` channels and a 3×3 to `growth`, each after norm and ReLU.

    With `memory_efficient`, the backward pass recomputes everything from the concatenation to the 1×1
    convolution. A block's memory then grows with its depth instead of its depth's square (arXiv 1707.06990).
    """

    def __init__(self, in_channels: int, growth: int, memory_efficient: bool) -> None:
        super().__init__()
        inner = BOTTLENECK * growth
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, growth)
        self.memory_efficient = memory_efficient

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map features `[N, C_i, H, W]`, whose C_i add up to in_channels, to `[N, growth, H, W]`."""
        if self.memory_efficient and self.training:
            squeezed: Tensor = checkpoint(
                self._squeeze,
                *features,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=self._recompute,
            )
        else:
            squeezed = self._squeeze(*features)
        new: Tensor = self.conv2(torch.relu(self.norm2(squeezed)))
        return new

    def _squeeze(self, *features: Tensor) -> Tensor:
        squeezed: Tensor = self.conv1(torch.relu(self.norm1(torch.cat(features, 1))))
        return squeezed

    def _recompute(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(self.norm1)


@contextmanager
def _frozen_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Leave the running statistics alone, since the forward pass has already counted this batch."""
    momentum = norm.momentum
    num_batches = norm.num_batches_tracked
    assert num_batches is not None
    norm.momentum = 0.0
    norm.num_batches_tracked = torch.zeros_like(num_batches)
    try:
        yield
    finally:
        norm.momentum = momentum
        norm.num_batches_tracked = num_batches


class DenseBlock(nn.Module):
    """`depth` layers. The block returns its input together with every layer's output."""

    def __init__(self, in_channels: int, growth: int, depth: int, memory_efficient: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + layer * growth, growth, memory_efficient) for layer in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, in_channels + depth * growth, H, W]`."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """Make the transition between two blocks: fewer channels at half the resolution."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(), conv1x1(in_channels, out_channels), nn.AvgPool2d(2)
    )


class DenseNet(nn.Sequential):
    """A DenseNet-BC: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, config: "DenseNetConfig", num_classes: int) -> None:
        depth = (config.depth - 4) // 6
        channels = 2 * config.growth
        layers: list[nn.Module] = [conv3x3(3, channels)]
        if config.normed_stem:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        for block in range(3):
            if block > 0:
                layers.append(transition(channels, channels // 2))
                channels //= 2
            layers.append(DenseBlock(channels, config.growth, depth, config.memory_efficient))
            channels += depth * config.growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), Classifier(channels, num_classes, config.dropout)]
        super().__init__(*layers)
        initialise(self)


@dataclass(frozen=True)
class DenseNetConfig(NetworkConfig):
    """The architecture of a DenseNet-BC: `depth` = 6n + 4 layers, each of which adds `growth` channels."""

    depth: int
    growth: int
    memory_efficient: bool = False
    """Train in less memory, taking more time, with the same results."""
    normed_stem: bool = False
    """A norm and a ReLU follow the first convolution, as in the paper's published DenseNets."""

    pattern = "densenet<depth>[_<growth>][_normed_stem], depth = 6n + 4, growth 40 by default"
    cifar_examples = ("densenet100_12", "densenet190")

    def __post_init__(self) -> None:
        if self.drop_path:
            raise NetworkError(f"{self}: has no residual branches to drop, so drop_path must be 0")

    @classmethod
    def parse(cls, name: str) -> "DenseNetConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for a depth that is not 6n + 4, or a growth of 0.
        """
        match = re.fullmatch(r"densenet(\d+)(?:_(\d+))?(_normed_stem)?", name)
        if match is None:
            return None
        depth = int(match[1])
        growth = int(match[2] or DEFAULT_GROWTH)
        if depth < 10 or (depth - 4) % 6:
            raise NetworkError(f"{name}: depth must be 6n + 4 (10, 16, 22, …, 100, 190, …), not {depth}")
        if growth < 1:
            raise NetworkError(f"{name}: growth must be at least 1, not {growth}")
        return cls(depth, growth, normed_stem=match[3] is not None)

    def divide(self, split: int) -> "DenseNetConfig":
        """Return the architecture of one of `split` members (paper, section III: growth / √S, rounded down).

        Raises:
            NetworkError: for a split that leaves no growth.
        """
        growth = math.floor(self.growth / math.sqrt(split))
        if growth < 1:
            raise NetworkError(f"{self}: split must be at most {self.growth**2}, not {split}")
        return replace(self, growth=growth)

    def in_less_memory(self) -> "DenseNetConfig":
        """Return the variant that recomputes concatenations instead of keeping them."""
        return replace(self, memory_efficient=True)

    def build(self, num_classes: int) -> DenseNet:
        """Build a network with random weights."""
        return DenseNet(self, num_classes)

    def __str__(self) -> str:
        suffix = "" if self.growth == DEFAULT_GROWTH else f"_{self.growth}"
        return f"densenet{self.depth}{suffix}{'_normed_stem' if self.normed_stem else ''}"
