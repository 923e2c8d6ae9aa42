"""ResNet for 32×32 images: three stages of bottlenecks (arXiv 1512.03385, post-activation)."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.layers import Classifier, conv1x1, conv3x3, initialise, shortcut

EXPANSION = 4
WIDTH_BY_SPLIT = {1: 16, 2: 12, 4: 8, 8: 6, 16: 4}


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut; the stride sits on the 3×3."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1, self.norm1 = conv1x1(in_channels, width), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = conv1x1(width, out_channels), nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, 4·width, H/stride, W/stride]`."""
        residual = torch.relu(self.norm1(self.conv1(x)))
        residual = torch.relu(self.norm2(self.conv2(residual)))
        return torch.relu(self.norm3(self.conv3(residual)) + self.shortcut(x))


class ResNet(nn.Sequential):
    """Images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        stem = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU())
        blocks, channels = [], width
        for stage in range(3):
            for block in range((depth - 2) // 9):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(channels, width << stage, stride))
                channels = (width << stage) * EXPANSION
        super().__init__(stem, nn.Sequential(*blocks), Classifier(channels, num_classes))
        initialise(self)
        for bottleneck in blocks:
            nn.init.zeros_(bottleneck.norm3.weight)


@dataclass(frozen=True)
class ResNetConfig:
    """A CIFAR ResNet of `depth` = 9n + 2 layers, of stem width `width`."""

    depth: int
    width: int = WIDTH_BY_SPLIT[1]

    pattern = "resnet<depth>, depth = 9n + 2: resnet110, resnet164"

    @classmethod
    def parse(cls, name: str) -> "ResNetConfig | None":
        """The configuration that `name` stands for, or None if it is of another family.

        Raises:
            NetworkError: for a depth that bottlenecks cannot make up.
        """
        match = re.fullmatch(r"resnet(\d+)", name)
        if match is None:
            return None
        depth = int(match[1])
        if depth < 11 or (depth - 2) % 9:
            raise NetworkError(f"{name}: depth must be 9n + 2 (11, 20, …, 110, 164, …), not {depth}")
        return cls(depth)

    def divide(self, split: int) -> "ResNetConfig":
        """The configuration of one of `split` members (paper, section III: base width 16 → 12, 8, 6, 4).

        Raises:
            NetworkError: for a split that the paper gives no width for.
        """
        if split not in WIDTH_BY_SPLIT:
            raise NetworkError(
                f"{self}: split must be one of {', '.join(map(str, WIDTH_BY_SPLIT))}, not {split}"
            )
        return ResNetConfig(self.depth, WIDTH_BY_SPLIT[split])

    def build(self, num_classes: int) -> ResNet:
        """A network with fresh random weights."""
        return ResNet(self.depth, self.width, num_classes)

    def __str__(self) -> str:
        width = "" if self.width == WIDTH_BY_SPLIT[1] else f"_width{self.width}"
        return f"resnet{self.depth}{width}"
