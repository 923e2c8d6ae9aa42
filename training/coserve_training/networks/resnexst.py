"""ResNeXSt for photographs: ResNeXt's groups with ResNeSt's split attention.

The parts are from arXiv 1611.05431 and arXiv 2004.08955, their combination from the paper's reference code.
"""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.bottleneck import EXPANSION, IMAGENET_BLOCKS
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import (
    Classifier,
    DropPath,
    conv1x1,
    conv3x3,
    deep_stem,
    initialise,
    linear_in_depth,
    shortcut,
)

BASE_WIDTH = 64
BRANCHES = 2
REDUCTION = 4
NARROWEST = 32


class SplitAttention(nn.Module):
    """Grouped 3×3 convolutions in two branches, which are added with weights that depend on the image.

    For each channel, the two weights add up to 1. They are computed per group from the branches' sum.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        inner = max(channels * BRANCHES // REDUCTION, NARROWEST)
        inner += -inner % groups
        self.groups = groups
        self.conv = conv3x3(channels, BRANCHES * channels, groups=BRANCHES * groups)
        self.norm = nn.BatchNorm2d(BRANCHES * channels)
        self.squeeze = nn.Conv2d(channels, inner, 1, groups=groups)
        self.squeezed_norm = nn.BatchNorm2d(inner)
        self.excite = nn.Conv2d(inner, BRANCHES * channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        branches = torch.unflatten(torch.relu(self.norm(self.conv(x))), 1, (BRANCHES, -1))
        squeezed = self.squeeze(branches.sum(1).mean((2, 3), keepdim=True))
        scores = self.excite(torch.relu(self.squeezed_norm(squeezed)))
        # Each group's scores are those of all its channels in the first branch, then in the second.
        scores = torch.unflatten(scores, 1, (self.groups, BRANCHES, -1)).transpose(1, 2)
        weights = torch.softmax(scores, 1).flatten(2, 3)
        mixed: Tensor = (branches * weights).sum(1)
        return mixed


class SplitAttentionBottleneck(nn.Module):
    """A 1×1 convolution, split attention and a 1×1 convolution beside a shortcut.

    Where it `pools`, a 3×3 average pool, which has the stride, follows the attention.
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        groups: int,
        stride: int,
        pools: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, inner)
        self.norm1 = nn.BatchNorm2d(inner)
        self.attention = SplitAttention(inner, groups)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if pools else nn.Identity()
        self.conv3 = conv1x1(inner, out_channels)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`, rounded up."""
        residual = self.pool(self.attention(torch.relu(self.norm1(self.conv1(x)))))
        residual = self.drop_path(self.norm3(self.conv3(residual)))
        return torch.relu(residual + self.shortcut(x))


class ResNeXSt(nn.Sequential):
    """A ResNeXSt: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, config: "ResNeXStConfig", num_classes: int) -> None:
        depths = IMAGENET_BLOCKS[config.depth]
        channels = 2 * BASE_WIDTH
        drop_paths = iter(linear_in_depth(config.drop_path, sum(depths)))
        blocks = []
        for stage, depth in enumerate(depths):
            for block in range(depth):
                out_channels = (BASE_WIDTH << stage) * EXPANSION
                blocks.append(
                    SplitAttentionBottleneck(
                        channels,
                        (config.group_width << stage) * config.groups,
                        out_channels,
                        config.groups,
                        stride=2 if stage > 0 and block == 0 else 1,
                        pools=stage > 0,
                        drop_path=next(drop_paths),
                    )
                )
                channels = out_channels
        stem = deep_stem((BASE_WIDTH, BASE_WIDTH, 2 * BASE_WIDTH), padded_pool=False)
        classifier = Classifier(channels, num_classes, config.dropout)
        super().__init__(stem, nn.Sequential(*blocks), classifier)
        # Norms start at 1, unlike ResNeXt's.
        initialise(self)


@dataclass(frozen=True)
class ResNeXStConfig(NetworkConfig):
    """The architecture of a ResNeXSt: 50, 101 or 152 layers, `groups` of `group_width` channels at first."""

    depth: int
    groups: int
    group_width: int

    pattern = "resnexst<50|101|152>_<groups>x<width>d"
    imagenet_examples = ("resnexst50_4x16d", "resnexst50_8x16d", "resnexst50_4x32d")

    @classmethod
    def parse(cls, name: str) -> "ResNeXStConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for no groups, or a width that the branches cannot share.
        """
        match = re.fullmatch(r"resnexst(50|101|152)_(\d+)x(\d+)d", name)
        if match is None:
            return None
        depth, groups, group_width = map(int, match.groups())
        if groups < 1 or group_width < 1 or group_width % BRANCHES:
            raise NetworkError(f"{name}: groups must be at least 1, and their width even and at least 2")
        return cls(depth, groups, group_width)

    def divide(self, split: int) -> "ResNeXStConfig":
        """Return the architecture of one of `split` members (the authors' code: groups / S).

        Raises:
            NetworkError: for a split that does not divide the groups.
        """
        if self.groups % split:
            raise NetworkError(f"{self}: split must divide its {self.groups} groups, not {split}")
        return replace(self, groups=self.groups // split)

    def build(self, num_classes: int) -> ResNeXSt:
        """Build a network with random weights."""
        return ResNeXSt(self, num_classes)

    def __str__(self) -> str:
        return f"resnexst{self.depth}_{self.groups}x{self.group_width}d"
