"""PyramidNet with ShakeDrop, for small images: each bottleneck is wider than the last (arXiv 1610.02915)."""

import math
import re
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import (
    Classifier,
    Reduce,
    conv1x1,
    conv3x3,
    initialise,
    linear_in_depth,
    shake,
)

STEM_WIDTH = 16
DEFAULT_ALPHA = 200
EXPANSION = 4


class ShakeDrop(nn.Module):
    """Perturbs the residual branch of a whole batch with `probability` (arXiv 1802.02375).

    A perturbed branch is multiplied by one factor per image, between -1 and 1, and its gradient by another,
    between 0 and 1. In evaluation every branch is multiplied by the mean factor, 1 - probability.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        if self.probability == 0:
            return x
        if not self.training:
            return x * (1 - self.probability)
        # Stay on the device: a branch on its decision would make the host wait.
        perturbed = torch.rand(1, device=x.device) < self.probability
        alpha = torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(-1, 1)
        beta = torch.rand(len(x), 1, 1, 1, device=x.device)
        return shake(x, torch.where(perturbed, alpha, 1), torch.where(perturbed, beta, 1))


class PyramidBottleneck(nn.Module):
    """A norm and 1×1, 3×3 and 1×1 convolutions, each followed by a norm, beside a shortcut without weights.

    ReLUs precede the second and the third convolution only. No ReLU follows the sum.
    """

    def __init__(self, in_channels: int, width: int, stride: int, drop_path: float) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.norm0 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.drop = ShakeDrop(drop_path)
        self.pool = Reduce(stride) if stride > 1 else nn.Identity()
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, 4 * width, H / stride, W / stride]`, rounded up."""
        residual = torch.relu(self.norm1(self.conv1(self.norm0(x))))
        residual = torch.relu(self.norm2(self.conv2(residual)))
        residual = self.drop(self.norm3(self.conv3(residual)))
        widened: Tensor = residual + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.new_channels))
        return widened


class PyramidNet(nn.Sequential):
    """A PyramidNet: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, config: "PyramidNetConfig", num_classes: int) -> None:
        depth = (config.depth - 2) // 9
        channels = STEM_WIDTH
        bottlenecks = []
        for block, drop_path in enumerate(linear_in_depth(config.drop_path, 3 * depth)):
            # PyramidNet's paper rounds down. The counts in the divided networks' paper need the nearest.
            width = round(STEM_WIDTH + config.alpha * (block + 1) / (3 * depth))
            stride = 2 if block in (depth, 2 * depth) else 1
            bottlenecks.append(PyramidBottleneck(channels, width, stride, drop_path))
            channels = EXPANSION * width
        super().__init__(
            conv3x3(3, STEM_WIDTH),
            nn.BatchNorm2d(STEM_WIDTH),
            *bottlenecks,
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            Classifier(channels, num_classes, config.dropout),
        )
        # Norms start at 1: with branches at 0, the channels that a shortcut pads would have no variance.
        initialise(self)


@dataclass(frozen=True)
class PyramidNetConfig(NetworkConfig):
    """The architecture of a PyramidNet: `depth` = 9n + 2 layers, which widen from 16 to 16 + `alpha`."""

    depth: int
    alpha: float
    drop_path: float = field(default=0.5, kw_only=True)
    """Probability of ShakeDrop in the last bottleneck."""

    pattern = "pyramidnet<depth>[_<alpha>], depth = 9n + 2, alpha 200 by default"
    cifar_examples = ("pyramidnet110_84", "pyramidnet272")

    @classmethod
    def parse(cls, name: str) -> "PyramidNetConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for a depth that is not 9n + 2, or an alpha of 0.
        """
        match = re.fullmatch(r"pyramidnet(\d+)(?:_(\d+))?", name)
        if match is None:
            return None
        depth = int(match[1])
        alpha = int(match[2] or DEFAULT_ALPHA)
        if depth < 11 or (depth - 2) % 9:
            raise NetworkError(f"{name}: depth must be 9n + 2 (11, 20, …, 164, 272, …), not {depth}")
        if alpha < 1:
            raise NetworkError(f"{name}: alpha must be at least 1, not {alpha}")
        return cls(depth, alpha)

    def divide(self, split: int) -> "PyramidNetConfig":
        """Return the architecture of one of `split` members (paper, section III: alpha / √S)."""
        return replace(self, alpha=self.alpha / math.sqrt(split))

    def build(self, num_classes: int) -> PyramidNet:
        """Build a network with random weights."""
        return PyramidNet(self, num_classes)

    def __str__(self) -> str:
        suffix = "" if self.alpha == DEFAULT_ALPHA else f"_{round(self.alpha, 1):g}"
        return f"pyramidnet{self.depth}{suffix}"
