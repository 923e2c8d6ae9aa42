"""Shake-Shake for small images: training mixes two residual branches at random (arXiv 1705.07485)."""

import re
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import (
    Classifier,
    DropPath,
    conv3x3,
    initialise,
    linear_in_depth,
    shake,
)

STEM_WIDTH = 16
DIVIDED_WIDTH = 96
WIDTH_BY_SPLIT = {1: 96, 2: 64, 4: 48, 8: 32}


class ShakeShake(nn.Module):
    """Mixes two branches in a random proportion per image, and their gradients in another proportion.

    This is the paper's "Shake-Shake-Image". Evaluation averages the branches.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map two `[N, C, H, W]` to one."""
        if not self.training:
            return 0.5 * first + 0.5 * second
        alpha, beta = torch.rand(2, len(first), 1, 1, 1, device=first.device)
        return shake(first, alpha, beta) + shake(second, 1 - alpha, 1 - beta)


class ShiftedShortcut(nn.Module):
    """Two 1×1 convolutions, each for half of the channels. The second sees its input shifted by one pixel.

    If the resolution halves, each path keeps every second pixel (the paper pools over one pixel), so that the
    two see different pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.straight = nn.Conv2d(in_channels, out_channels // 2, 1, stride, bias=False)
        self.shifted = nn.Conv2d(in_channels, out_channels // 2, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`, rounded up."""
        x = torch.relu(x)
        one_left_and_up = F.pad(x, (-1, 1, -1, 1))
        shortcut: Tensor = self.norm(torch.cat([self.straight(x), self.shifted(one_left_and_up)], 1))
        return shortcut


class ShakeShakeBlock(nn.Module):
    """Two branches beside a shortcut. Each has ReLU, 3×3 convolution and norm, twice."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                conv3x3(in_channels, out_channels, stride),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                conv3x3(out_channels, out_channels),
                nn.BatchNorm2d(out_channels),
            )
            for _ in range(2)
        )
        self.mix = ShakeShake()
        self.drop_path = DropPath(drop_path)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else ShiftedShortcut(in_channels, out_channels, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`, rounded up."""
        residual = self.drop_path(self.mix(*(branch(x) for branch in self.branches)))
        block: Tensor = residual + self.shortcut(x)
        return block


class ShakeShakeNetwork(nn.Sequential):
    """A Shake-Shake network: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, config: "ShakeShakeConfig", num_classes: int) -> None:
        blocks = []
        channels = STEM_WIDTH
        depth = (config.depth - 2) // 6
        drop_paths = iter(linear_in_depth(config.drop_path, 3 * depth))
        for stage in range(3):
            width = config.width << stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ShakeShakeBlock(channels, width, stride, next(drop_paths)))
                channels = width
        super().__init__(
            conv3x3(3, STEM_WIDTH),
            nn.BatchNorm2d(STEM_WIDTH),
            *blocks,
            nn.ReLU(),
            Classifier(channels, num_classes, config.dropout),
        )
        initialise(self)


@dataclass(frozen=True)
class ShakeShakeConfig(NetworkConfig):
    """The architecture of a Shake-Shake network: `depth` = 6n + 2 layers, `width` channels at first."""

    depth: int
    width: int

    pattern = "shake_resnet<depth>_2x<width>d, depth = 6n + 2"
    cifar_examples = ("shake_resnet26_2x96d",)

    @classmethod
    def parse(cls, name: str) -> "ShakeShakeConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for a depth that is not 6n + 2, or an odd width, which shortcuts cannot halve.
        """
        match = re.fullmatch(r"shake_resnet(\d+)_2x(\d+)d", name)
        if match is None:
            return None
        depth = int(match[1])
        width = int(match[2])
        if depth < 8 or (depth - 2) % 6:
            raise NetworkError(f"{name}: depth must be 6n + 2 (8, 14, 20, 26, …), not {depth}")
        if width < 2 or width % 2:
            raise NetworkError(f"{name}: width must be even and at least 2, not {width}")
        return cls(depth, width)

    def divide(self, split: int) -> "ShakeShakeConfig":
        """Return the architecture of one of `split` members (paper, section III: a smaller width).

        Raises:
            NetworkError: for a width or split that the paper gives no rule for.
        """
        if split == 1:
            return self
        if self.width != DIVIDED_WIDTH:
            raise NetworkError(f"{self}: can only be divided from a width of {DIVIDED_WIDTH} (2x96d)")
        if split not in WIDTH_BY_SPLIT:
            raise NetworkError(
                f"{self}: split must be one of {', '.join(map(str, WIDTH_BY_SPLIT))}, not {split}"
            )
        return replace(self, width=WIDTH_BY_SPLIT[split])

    def build(self, num_classes: int) -> ShakeShakeNetwork:
        """Build a network with random weights."""
        return ShakeShakeNetwork(self, num_classes)

    def __str__(self) -> str:
        return f"shake_resnet{self.depth}_2x{self.width}d"
