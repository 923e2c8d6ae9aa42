"""Wide ResNet for 32×32 images: three stages of widened basic blocks (arXiv 1605.07146)."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.layers import Classifier, conv3x3, initialise, shortcut

STEM_WIDTH = 16


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.norm2 = conv3x3(out_channels, out_channels), nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, out_channels, H/stride, W/stride]`."""
        residual = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(residual)) + self.shortcut(x))


class WideResNet(nn.Sequential):
    """Images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, depth: int, widen_factor: int, num_classes: int) -> None:
        stem = nn.Sequential(conv3x3(3, STEM_WIDTH), nn.BatchNorm2d(STEM_WIDTH), nn.ReLU())
        blocks, channels = [], STEM_WIDTH
        for stage in range(3):
            width = (STEM_WIDTH * widen_factor) << stage
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width, stride))
                channels = width
        super().__init__(stem, nn.Sequential(*blocks), Classifier(channels, num_classes))
        initialise(self)
        for basic_block in blocks:
            nn.init.zeros_(basic_block.norm2.weight)


@dataclass(frozen=True)
class WideResNetConfig:
    """A CIFAR Wide ResNet of `depth` = 6n + 4 layers, widened `widen_factor` times."""

    depth: int
    widen_factor: int

    pattern = (
        "wide_resnet<depth>_<factor>, depth = 6n + 4: wide_resnet16_8, wide_resnet28_10, wide_resnet40_10"
    )

    @classmethod
    def parse(cls, name: str) -> "WideResNetConfig | None":
        """The configuration that `name` stands for, or None if it is of another family.

        Raises:
            NetworkError: for a depth that basic blocks cannot make up, or a factor of zero.
        """
        match = re.fullmatch(r"wide_resnet(\d+)_(\d+)", name)
        if match is None:
            return None
        depth, widen_factor = int(match[1]), int(match[2])
        if depth < 10 or (depth - 4) % 6:
            raise NetworkError(f"{name}: depth must be 6n + 4 (10, 16, 22, 28, 40, …), not {depth}")
        if widen_factor < 1:
            raise NetworkError(f"{name}: the widening factor must be at least 1, not {widen_factor}")
        return cls(depth, widen_factor)

    def divide(self, split: int) -> "WideResNetConfig":
        """The configuration of one of `split` members (paper, section III: k' = ⌊max(k / √S + 0.4, 1)⌋)."""
        return WideResNetConfig(self.depth, math.floor(max(self.widen_factor / math.sqrt(split) + 0.4, 1)))

    def build(self, num_classes: int) -> WideResNet:
        """A network with fresh random weights."""
        return WideResNet(self.depth, self.widen_factor, num_classes)

    def __str__(self) -> str:
        return f"wide_resnet{self.depth}_{self.widen_factor}"
