"""Wide ResNet: three stages of basic blocks for small images, bottlenecks for ImageNet (arXiv 1605.07146)."""

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.bottleneck import IMAGENET_BLOCKS, BottleneckNetwork, Stages
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import (
    Classifier,
    DropPath,
    conv3x3,
    initialise,
    linear_in_depth,
    shortcut,
    small_stem,
)

STEM_WIDTH = 16
IMAGENET_WIDTH = 64
WIDTH_BY_SPLIT = {1: IMAGENET_WIDTH, 2: 44, 4: 32}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, out_channels, H/stride, W/stride]`."""
        residual = torch.relu(self.norm1(self.conv1(x)))
        residual = self.drop_path(self.norm2(self.conv2(residual)))
        return torch.relu(residual + self.shortcut(x))


class WideResNet(nn.Sequential):
    """A CIFAR Wide ResNet: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, config: "WideResNetConfig", num_classes: int) -> None:
        blocks = []
        channels = STEM_WIDTH
        depth = (config.depth - 4) // 6
        drop_paths = iter(linear_in_depth(config.drop_path, 3 * depth))
        for stage in range(3):
            width = (STEM_WIDTH * config.widen_factor) << stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, next(drop_paths)))
                channels = width
        classifier = Classifier(channels, num_classes, config.dropout)
        super().__init__(small_stem(STEM_WIDTH), nn.Sequential(*blocks), classifier)
        initialise(self)
        for basic_block in blocks:
            nn.init.zeros_(basic_block.norm2.weight)


@dataclass(frozen=True)
class WideResNetConfig(NetworkConfig):
    """The architecture of a CIFAR Wide ResNet: `depth` = 6n + 4 layers, `widen_factor` times as wide."""

    depth: int
    widen_factor: int

    pattern = "wide_resnet<depth>_<factor>, depth = 6n + 4"
    cifar_examples = ("wide_resnet16_8", "wide_resnet28_10", "wide_resnet40_10")

    @classmethod
    def parse(cls, name: str) -> "WideResNetConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for a depth that is not 6n + 4, or a factor of 0.
        """
        match = re.fullmatch(r"wide_resnet(\d+)_(\d+)", name)
        if match is None:
            return None
        depth = int(match[1])
        widen_factor = int(match[2])
        if depth < 10 or (depth - 4) % 6:
            raise NetworkError(f"{name}: depth must be 6n + 4 (10, 16, 22, 28, 40, …), not {depth}")
        if widen_factor < 1:
            raise NetworkError(f"{name}: the widening factor must be at least 1, not {widen_factor}")
        return cls(depth, widen_factor)

    def divide(self, split: int) -> "WideResNetConfig":
        """Return the architecture of one of `split` members.

        Its factor is k' = ⌊max(k / √S + 0.4, 1)⌋ (paper, section III).
        """
        return replace(self, widen_factor=math.floor(max(self.widen_factor / math.sqrt(split) + 0.4, 1)))

    def build(self, num_classes: int) -> WideResNet:
        """Build a network with random weights."""
        return WideResNet(self, num_classes)

    def __str__(self) -> str:
        return f"wide_resnet{self.depth}_{self.widen_factor}"


@dataclass(frozen=True)
class ImageNetWideResNetConfig(NetworkConfig):
    """The architecture of an ImageNet ResNet with 3×3 convolutions `widen_factor` times as wide."""

    depth: int
    widen_factor: int
    width: int = IMAGENET_WIDTH

    pattern = "wide_resnet<50|101|152>_<factor>"
    imagenet_examples = ("wide_resnet50_2", "wide_resnet50_3")

    @classmethod
    def parse(cls, name: str) -> "ImageNetWideResNetConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for a factor of 0.
        """
        match = re.fullmatch(r"wide_resnet(50|101|152)_(\d+)", name)
        if match is None:
            return None
        if int(match[2]) < 1:
            raise NetworkError(f"{name}: the widening factor must be at least 1, not {match[2]}")
        return cls(int(match[1]), int(match[2]))

    def divide(self, split: int) -> "ImageNetWideResNetConfig":
        """Return the architecture of one of `split` members (paper, section III).

        Two members of depth 50 have a smaller factor (2 → 1, 3 → 2), and deeper ones a smaller base width.
        Four members have half the base width.

        Raises:
            NetworkError: for a split other than 1, 2 and 4, or a split of 2 with another factor at depth 50.
        """
        if split not in WIDTH_BY_SPLIT:
            raise NetworkError(f"{self}: split must be one of 1, 2, 4, not {split}")
        if split == 2 and self.depth == 50:
            if self.widen_factor not in (2, 3):
                raise NetworkError(
                    f"{self}: two members are defined for factors 2 and 3, not {self.widen_factor}"
                )
            return replace(self, widen_factor=self.widen_factor - 1)
        return replace(self, width=WIDTH_BY_SPLIT[split])

    def build(self, num_classes: int) -> BottleneckNetwork:
        """Build a network with random weights."""
        layout = Stages(
            stem=(self.width, self.width, 2 * self.width),
            blocks=IMAGENET_BLOCKS[self.depth],
            width=self.width,
            inner=self.width * self.widen_factor,
            dropout=self.dropout,
            drop_path=self.drop_path,
        )
        return BottleneckNetwork(layout, num_classes)

    def __str__(self) -> str:
        suffix = "" if self.width == IMAGENET_WIDTH else f"_width{self.width}"
        return f"wide_resnet{self.depth}_{self.widen_factor}{suffix}"
