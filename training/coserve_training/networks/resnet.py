"""ResNet and SE-ResNet, for small images and for ImageNet (arXiv 1512.03385, 1709.01507)."""

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

SMALL_WIDTH_BY_SPLIT = {1: 16, 2: 12, 4: 8, 8: 6, 16: 4}
IMAGENET_WIDTH_BY_SPLIT = {1: 64, 2: 44, 4: 32, 8: 24}


@dataclass(frozen=True)
class ResNetConfig(NetworkConfig):
    """The architecture of a ResNet: 50, 101 or 152 layers for ImageNet, 9n + 2 for small images."""

    depth: int
    width: int
    squeeze_excitation: bool = False

    pattern = "[se_]resnet<depth>, depth = 9n + 2 or 50, 101, 152"
    cifar_examples = ("resnet110", "resnet164", "se_resnet110", "se_resnet164")
    imagenet_examples = ("resnet50", "resnet101", "se_resnet50")

    @classmethod
    def parse(cls, name: str) -> "ResNetConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for another depth.
        """
        match = re.fullmatch(r"(se_)?resnet(\d+)", name)
        if match is None:
            return None
        depth = int(match[2])
        if depth not in IMAGENET_BLOCKS and (depth < 11 or (depth - 2) % 9):
            raise NetworkError(
                f"{name}: depth must be 9n + 2 (11, 20, …, 110, 164, …), "
                f"or 50, 101, 152 for ImageNet, not {depth}"
            )
        widths = IMAGENET_WIDTH_BY_SPLIT if depth in IMAGENET_BLOCKS else SMALL_WIDTH_BY_SPLIT
        return cls(depth, widths[1], squeeze_excitation=match[1] is not None)

    @property
    def _width_by_split(self) -> dict[int, int]:
        return IMAGENET_WIDTH_BY_SPLIT if self.depth in IMAGENET_BLOCKS else SMALL_WIDTH_BY_SPLIT

    def divide(self, split: int) -> "ResNetConfig":
        """Return the architecture of one of `split` members (paper, section III: a smaller base width).

        Raises:
            NetworkError: for a split that the paper gives no width for.
        """
        widths = self._width_by_split
        if split not in widths:
            raise NetworkError(f"{self}: split must be one of {', '.join(map(str, widths))}, not {split}")
        return replace(self, width=widths[split])

    def build(self, num_classes: int) -> BottleneckNetwork:
        """Build a network with random weights."""
        imagenet = self.depth in IMAGENET_BLOCKS
        reduction = IMAGENET_SE_REDUCTION if imagenet else SMALL_SE_REDUCTION
        layout = Stages(
            stem=self._stem,
            blocks=IMAGENET_BLOCKS[self.depth] if imagenet else [(self.depth - 2) // 9] * 3,
            width=self.width,
            inner=self.width,
            se_reduction=reduction if self.squeeze_excitation else None,
            dropout=self.dropout,
            drop_path=self.drop_path,
        )
        return BottleneckNetwork(layout, num_classes)

    @property
    def _stem(self) -> tuple[int, ...]:
        if self.depth not in IMAGENET_BLOCKS:
            return (self.width,)
        # The paper's multiply-adds of se_resnet50 imply a stem that does not widen.
        return (self.width, self.width, self.width if self.squeeze_excitation else 2 * self.width)

    def __str__(self) -> str:
        prefix = "se_" if self.squeeze_excitation else ""
        suffix = "" if self.width == self._width_by_split[1] else f"_width{self.width}"
        return f"{prefix}resnet{self.depth}{suffix}"
