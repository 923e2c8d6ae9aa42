"""Building blocks that several families share."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Make a padded 3×3 convolution without bias, to precede a batch norm."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Make a 1×1 convolution without bias, to precede a batch norm."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class Reduce(nn.Module):
    """Average pool over `stride` × `stride` pixels, rounding the resolution up."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, C, H / stride, W / stride]`, rounded up."""
        # Only if it changes the result: ONNX Runtime's fast pool cannot round up.
        round_up = any(side % self.stride for side in x.shape[2:])
        return F.avg_pool2d(x, self.stride, ceil_mode=round_up)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Make the path beside a residual branch, which is empty if the shapes agree.

    An average pool halves the resolution, rounding up, instead of a strided convolution ("ResNet-D",
    arXiv 1812.01187).
    """
    layers: list[nn.Module] = []
    if stride > 1:
        layers.append(Reduce(stride))
    if in_channels != out_channels:
        layers += [conv1x1(in_channels, out_channels), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Scales channels by factors computed from all channels' means over the image (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        scale = self.excite(self.activation(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops an image's whole residual branch with `probability`.

    Other branches are scaled so that the mean stays the same. In evaluation every branch is kept.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        if not self.training or self.probability == 0:
            return x
        kept = 1 - self.probability
        return x * torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(kept) / kept


class _Shake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, gradient_factor: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient_factor,) = ctx.saved_tensors
        return gradient * gradient_factor, None, None


def shake(x: Tensor, factor: Tensor, gradient_factor: Tensor) -> Tensor:
    """Return `x * factor`, but multiply the gradient by `gradient_factor` (arXiv 1705.07485).

    Both factors are broadcast over `x` and converted to its dtype.
    """
    shaken: Tensor = _Shake.apply(x, factor.to(x.dtype), gradient_factor.to(x.dtype))  # type: ignore[no-untyped-call]
    return shaken


def linear_in_depth(probability: float, blocks: int) -> list[float]:
    """Return drop probabilities for `blocks` residual branches, up to `probability` for the last."""
    return [probability * (block + 1) / blocks for block in range(blocks)]


def small_stem(width: int) -> nn.Sequential:
    """Make a stem for images of about 32 pixels: one 3×3 convolution at full resolution."""
    return nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU())


def deep_stem(widths: Sequence[int], padded_pool: bool = True) -> nn.Sequential:
    """Make a stem for photographs: 3×3 convolutions of the given widths and a pool, to 1/4 resolution.

    The pool's windows start one pixel outside of the image or, without `padded_pool`, at its first pixel.
    """
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise((3, *widths)):
        stride = 1 if layers else 2
        layers += [conv3x3(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels), nn.ReLU()]
    pool = nn.MaxPool2d(3, stride=2, padding=1 if padded_pool else 0, ceil_mode=not padded_pool)
    return nn.Sequential(*layers, pool)


def initialise(network: nn.Module) -> None:
    """Draw weights: convolutions Kaiming normal (fan out), classifier normal with std 1e-3, its bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1e-3)
            nn.init.zeros_(module.bias)


class Classifier(nn.Sequential):
    """Global average pool, dropout and linear layer: `[N, channels, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes)
        )
