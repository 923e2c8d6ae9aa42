"""ResNeXt and SE-ResNeXt: bottlenecks with grouped convolutions (arXiv 1611.05431, 1709.01507)."""

import re
from dataclasses import dataclass, replace

from coserve_training.errors import NetworkError
from coserve_training.networks.bottleneck import (
    IMAGENET_BLOCKS,
    IMAGENET_SE_REDUCTION,
    SMALL_SE_REDUCTION,
    BottleneckNetwork,
    Stages,
)
from coserve_training.networks.config import NetworkConfig

BASE_WIDTH = 64


@dataclass(frozen=True)
class ResNeXtConfig(NetworkConfig):
    """The architecture of a ResNeXt: 50, 101 or 152 layers for ImageNet, 9n + 2 for small images."""

    depth: int
    groups: int
    group_width: int
    squeeze_excitation: bool = False
    narrow_stem: bool = False
    """For ImageNet: the stem has 64 output channels instead of 128."""

    pattern = "[se_]resnext<depth>_<groups>x<width>d[_narrow_stem], depth = 9n + 2 or 50, 101, 152"
    cifar_examples = ("resnext29_8x64d",)
    imagenet_examples = ("resnext101_64x4d", "se_resnext101_64x4d")

    @classmethod
    def parse(cls, name: str) -> "ResNeXtConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for another depth, a narrow stem for small images, or groups without width.
        """
        match = re.fullmatch(r"(se_)?resnext(\d+)_(\d+)x(\d+)d(_narrow_stem)?", name)
        if match is None:
            return None
        depth = int(match[2])
        groups = int(match[3])
        group_width = int(match[4])
        if depth not in IMAGENET_BLOCKS and (depth < 11 or (depth - 2) % 9):
            raise NetworkError(
                f"{name}: depth must be 9n + 2 (29, …), or 50, 101, 152 for ImageNet, not {depth}"
            )
        narrow_stem = match[5] is not None
        if narrow_stem and depth not in IMAGENET_BLOCKS:
            raise NetworkError(f"{name}: only the ImageNet networks (50, 101, 152) have a narrow stem")
        if groups < 1 or group_width < 1:
            raise NetworkError(f"{name}: groups and their width must be at least 1")
        return cls(depth, groups, group_width, match[1] is not None, narrow_stem)

    def divide(self, split: int) -> "ResNeXtConfig":
        """Return the architecture of one of `split` members (paper, section III: groups / S).

        Raises:
            NetworkError: for a split that does not divide the groups.
        """
        if self.groups % split:
            raise NetworkError(f"{self}: split must divide its {self.groups} groups, not {split}")
        return replace(self, groups=self.groups // split)

    def build(self, num_classes: int) -> BottleneckNetwork:
        """Build a network with random weights."""
        imagenet = self.depth in IMAGENET_BLOCKS
        reduction = IMAGENET_SE_REDUCTION if imagenet else SMALL_SE_REDUCTION
        stem = (BASE_WIDTH, BASE_WIDTH, BASE_WIDTH if self.narrow_stem else 2 * BASE_WIDTH)
        layout = Stages(
            stem=stem if imagenet else stem[:1],
            blocks=IMAGENET_BLOCKS[self.depth] if imagenet else [(self.depth - 2) // 9] * 3,
            width=BASE_WIDTH,
            inner=self.groups * self.group_width,
            groups=self.groups,
            se_reduction=reduction if self.squeeze_excitation else None,
            dropout=self.dropout,
            drop_path=self.drop_path,
        )
        return BottleneckNetwork(layout, num_classes)

    def __str__(self) -> str:
        prefix = "se_" if self.squeeze_excitation else ""
        suffix = "_narrow_stem" if self.narrow_stem else ""
        return f"{prefix}resnext{self.depth}_{self.groups}x{self.group_width}d{suffix}"
