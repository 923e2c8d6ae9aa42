"""Building blocks that several families share."""

from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3×3 convolution without bias, for use before batch norm."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1×1 convolution without bias, for use before batch norm."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The path beside a residual branch; empty where shapes agree.

    Resolution is halved by an average pool rather than a strided convolution ("ResNet-D", arXiv 1812.01187).
    """
    layers: list[nn.Module] = []
    if stride > 1:
        layers.append(nn.AvgPool2d(stride))
    if in_channels != out_channels:
        layers += [conv1x1(in_channels, out_channels), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers)


def initialise(network: nn.Module) -> None:
    """Convolutions Kaiming normal (fan out), batch norms at one, classifier normal with std 1e-3."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1e-3)
            nn.init.zeros_(module.bias)


class Classifier(nn.Sequential):
    """Global average pool, then a linear layer: `[N, channels, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
