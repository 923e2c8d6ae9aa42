"""Stages of bottlenecks, shared by ResNet, ResNeXt and the ImageNet Wide ResNet (arXiv 1512.03385)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coserve_training.networks.layers import (
    Classifier,
    DropPath,
    SqueezeExcitation,
    conv1x1,
    conv3x3,
    deep_stem,
    initialise,
    linear_in_depth,
    shortcut,
    small_stem,
)

EXPANSION = 4
IMAGENET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SMALL_SE_REDUCTION = 4
IMAGENET_SE_REDUCTION = 16


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut. The 3×3 convolution has the stride."""

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        stride: int,
        groups: int,
        se_reduction: int | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, inner)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, out_channels)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.excitation = (
            nn.Identity()
            if se_reduction is None
            else SqueezeExcitation(out_channels, out_channels // se_reduction)
        )
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, out_channels, H/stride, W/stride]`."""
        residual = torch.relu(self.norm1(self.conv1(x)))
        residual = torch.relu(self.norm2(self.conv2(residual)))
        residual = self.drop_path(self.excitation(self.norm3(self.conv3(residual))))
        return torch.relu(residual + self.shortcut(x))


@dataclass(frozen=True)
class Stages:
    """The layout of a network of bottlenecks.

    Attributes:
        stem: widths of the stem's convolutions. One keeps the resolution; three, with a pool, quarter it.
        blocks: number of bottlenecks per stage.
        width: stage i outputs four times `width << i` channels.
        inner: width of the first stage's 3×3 convolutions; each stage doubles it.
        groups: groups of the 3×3 convolutions.
        se_reduction: reduction of squeeze-and-excitation; None leaves it out.
        dropout: dropout before the classifier.
        drop_path: drop probability of the last bottleneck.
    """

    stem: Sequence[int]
    blocks: Sequence[int]
    width: int
    inner: int
    groups: int = 1
    se_reduction: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0


class BottleneckNetwork(nn.Sequential):
    """A network of bottlenecks: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, layout: Stages, num_classes: int) -> None:
        # The paper's reference code pools its SE networks without padding.
        padded_pool = layout.se_reduction is None
        stem = small_stem(*layout.stem) if len(layout.stem) == 1 else deep_stem(layout.stem, padded_pool)
        channels = layout.stem[-1]
        bottlenecks = []
        drop_paths = iter(linear_in_depth(layout.drop_path, sum(layout.blocks)))
        for stage, count in enumerate(layout.blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                out_channels = (layout.width << stage) * EXPANSION
                bottlenecks.append(
                    Bottleneck(
                        channels,
                        layout.inner << stage,
                        out_channels,
                        stride,
                        layout.groups,
                        layout.se_reduction,
                        next(drop_paths),
                    )
                )
                channels = out_channels
        classifier = Classifier(channels, num_classes, layout.dropout)
        super().__init__(stem, nn.Sequential(*bottlenecks), classifier)
        initialise(self)
        for bottleneck in bottlenecks:
            nn.init.zeros_(bottleneck.norm3.weight)
