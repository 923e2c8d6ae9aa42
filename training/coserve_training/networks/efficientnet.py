"""EfficientNet: inverted bottlenecks with squeeze-and-excitation (arXiv 1905.11946)."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from coserve_training.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import (
    Classifier,
    DropPath,
    SqueezeExcitation,
    initialise,
    linear_in_depth,
)

SMALL_IMAGE = 128
"""Images below this size, in pixels, would have fewer than 4×4 positions after five halvings."""
SQUEEZE = 4
"""A block's input channels per channel of its squeeze-and-excitation."""


class Variant(NamedTuple):
    """Factors of width and depth relative to b0 (arXiv 1905.11946), and the variant's dropout."""

    width: float
    depth: float
    dropout: float


VARIANTS = (
    Variant(1.0, 1.0, 0.2),
    Variant(1.0, 1.1, 0.2),
    Variant(1.1, 1.2, 0.3),
    Variant(1.2, 1.4, 0.3),
    Variant(1.4, 1.8, 0.4),
    Variant(1.6, 2.2, 0.4),
    Variant(1.8, 2.6, 0.5),
    Variant(2.0, 3.1, 0.5),
    Variant(2.2, 3.6, 0.5),
)


class Stage(NamedTuple):
    """Blocks of one shape. The first has the stride: `small_stride` in the network for small images."""

    expansion: int
    blocks: int
    kernel: int
    stride: int
    small_stride: int


STAGES = (
    Stage(1, 1, 3, 1, 1),
    Stage(6, 2, 3, 2, 2),
    Stage(6, 2, 5, 2, 1),
    Stage(6, 3, 3, 2, 2),
    Stage(6, 3, 5, 1, 1),
    Stage(6, 4, 5, 2, 1),
    Stage(6, 1, 3, 1, 1),
)


class Channels(NamedTuple):
    """Channels of b0's stem, stages and head. Wider variants are rounded to multiples of `divisor`."""

    stem: int
    stages: tuple[int, ...]
    head: int
    divisor: int


CHANNELS_BY_SPLIT = {
    1: Channels(32, (16, 24, 40, 80, 112, 192, 320), 1280, divisor=8),
    2: Channels(24, (12, 16, 24, 56, 80, 136, 224), 920, divisor=4),
    4: Channels(16, (12, 16, 20, 40, 56, 96, 160), 640, divisor=4),
}


class SamePadded(nn.Conv2d):
    """A convolution that pads as TensorFlow does: as little as possible, and below and right first.

    Attributes:
        side: height and width of the inputs that the padding is computed for; 0 for the inputs at hand.
    """

    side = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, out_channels, H / stride, W / stride]`, rounded up."""
        padding: list[int] = []
        for side, stride, kernel in zip(x.shape[:1:-1], self.stride, self.kernel_size, strict=True):
            side = self.side or side
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            padding += (total // 2, total - total // 2)
        return F.conv2d(F.pad(x, padding), self.weight, None, self.stride, groups=self.groups)


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    same_padding: bool = False,
) -> list[nn.Module]:
    """Make a padded convolution without bias, and a batch norm with EfficientNet's momentum and epsilon.

    With `same_padding`, it pads as TensorFlow does, which differs if the stride is 2.
    """
    convolve = SamePadded if same_padding and stride > 1 else nn.Conv2d
    return [
        convolve(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
    ]


class InvertedBottleneck(nn.Module):
    """MBConv: widens, filters each channel separately, scales the channels, and narrows."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stage: Stage,
        stride: int,
        drop_path: float,
        same_padding: bool,
    ) -> None:
        super().__init__()
        inner = stage.expansion * in_channels
        widen = [] if stage.expansion == 1 else [*convolution(in_channels, inner, 1), nn.SiLU()]
        self.layers = nn.Sequential(
            *widen,
            *convolution(inner, inner, stage.kernel, stride, inner, same_padding),
            nn.SiLU(),
            SqueezeExcitation(inner, max(1, in_channels // SQUEEZE), nn.SiLU),
            *convolution(inner, out_channels, 1),
        )
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, out_channels, H/stride, W/stride]`."""
        residual: Tensor = self.layers(x)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class EfficientNet(nn.Sequential):
    """An EfficientNet: images `[N, 3, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, config: "EfficientNetConfig", num_classes: int) -> None:
        variant = VARIANTS[config.variant]
        table = CHANNELS_BY_SPLIT[config.channels_of_split]
        depths = block_counts(config.variant)
        drop_paths = iter(linear_in_depth(config.drop_path, sum(depths)))
        channels = widen(table.stem, variant.width, table.divisor)
        same_padding = config.same_padding is not None
        stem_stride = 1 if config.small_images else 2
        stem = nn.Sequential(*convolution(3, channels, 3, stem_stride, 1, same_padding), nn.SiLU())
        blocks = []
        for stage, depth, base in zip(STAGES, depths, table.stages, strict=True):
            out_channels = widen(base, variant.width, table.divisor)
            stride = stage.small_stride if config.small_images else stage.stride
            for block in range(depth):
                drop_path = next(drop_paths)
                block_stride = 1 if block else stride
                blocks.append(
                    InvertedBottleneck(channels, out_channels, stage, block_stride, drop_path, same_padding)
                )
                channels = out_channels
        wide = widen(table.head, variant.width, table.divisor)
        head = nn.Sequential(*convolution(channels, wide, 1), nn.SiLU())
        super().__init__(stem, nn.Sequential(*blocks), head, Classifier(wide, num_classes, config.dropout))
        initialise(self)
        side = config.same_padding or 0
        for layer in self.modules():
            if isinstance(layer, SamePadded):
                layer.side = side
                side = math.ceil(side / layer.stride[0])


def block_counts(variant: int) -> list[int]:
    """Return the number of blocks of each stage."""
    return [math.ceil(VARIANTS[variant].depth * stage.blocks) for stage in STAGES]


def widen(channels: int, width: float, divisor: int) -> int:
    """Round `channels * width` to the nearest multiple of `divisor`, taking away a tenth at most."""
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded


@dataclass(frozen=True)
class EfficientNetConfig(NetworkConfig):
    """The architecture of EfficientNet b0 to b8, with the channels for one of `channels_of_split` members.

    The variant for images below 128 pixels halves the resolution twice instead of five times.
    """

    variant: int
    channels_of_split: int = 1
    small_images: bool = False
    same_padding: int | None = None
    """Pad as TensorFlow does, as in the paper's EfficientNets for ImageNet.

    The number is the size in pixels that paddings are computed for; 0 takes the size of the given images.
    """
    drop_path: float = field(default=0.2, kw_only=True)

    pattern = "efficientnet_b<0 to 8>[_same_padding[<pixels>]]"
    cifar_examples = ("efficientnet_b0", "efficientnet_b3")
    imagenet_examples = ("efficientnet_b0", "efficientnet_b3", "efficientnet_b7")

    @classmethod
    def parse(cls, name: str) -> "EfficientNetConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for a variant that is not defined.
        """
        match = re.fullmatch(r"efficientnet_b(\d+)(?:_same_padding(\d*))?", name)
        if match is None:
            return None
        variant = int(match[1])
        if variant >= len(VARIANTS):
            raise NetworkError(f"{name}: variants are b0 to b{len(VARIANTS) - 1}")
        same_padding = None if match[2] is None else int(match[2] or 0)
        return cls(variant, same_padding=same_padding, dropout=VARIANTS[variant].dropout)

    def divide(self, split: int) -> "EfficientNetConfig":
        """Return the architecture of one of `split` members (paper's reference code: a table of channels).

        Raises:
            NetworkError: for a split that has no table.
        """
        if split not in CHANNELS_BY_SPLIT:
            known = ", ".join(map(str, CHANNELS_BY_SPLIT))
            raise NetworkError(f"{self}: split must be one of {known}, not {split}")
        return replace(self, channels_of_split=split)

    def for_images(self, size: int) -> "EfficientNetConfig":
        """Return the variant for images of `size` pixels. Small images keep more of their resolution."""
        return replace(self, small_images=size < SMALL_IMAGE)

    def build(self, num_classes: int) -> EfficientNet:
        """Build a network with random weights."""
        return EfficientNet(self, num_classes)

    def __str__(self) -> str:
        stem = CHANNELS_BY_SPLIT[self.channels_of_split].stem
        suffix = "" if self.channels_of_split == 1 else f"_width{stem}"
        if self.same_padding is not None:
            suffix += f"_same_padding{self.same_padding or ''}"
        return f"efficientnet_b{self.variant}{suffix}"
