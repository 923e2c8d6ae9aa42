"""The networks Coserve divides, by name.

A family is a configuration class with `parse`, `divide`, `build` and `__str__`, added to `FAMILIES`.
"""

from typing import Protocol

from torch import nn

from coserve_training.errors import NetworkError
from coserve_training.networks.resnet import ResNetConfig
from coserve_training.networks.resnext import ResNeXtConfig
from coserve_training.networks.wide_resnet import ImageNetWideResNetConfig, WideResNetConfig

FAMILIES = (ResNetConfig, ResNeXtConfig, ImageNetWideResNetConfig, WideResNetConfig)


class NetworkConfig(Protocol):
    """What a family's configuration offers."""

    def divide(self, split: int) -> "NetworkConfig":
        """The configuration of one of `split` members; NetworkError where no rule covers `split`."""

    def build(self, num_classes: int) -> nn.Module:
        """A network with fresh random weights: `[N, 3, H, W]` float to logits `[N, num_classes]`."""


def network(name: str) -> NetworkConfig:
    """The configuration that `name` stands for.

    Raises:
        NetworkError: for an unknown name, or one whose depth or width no network can have.
    """
    for family in FAMILIES:
        config = family.parse(name)
        if config is not None:
            return config
    known = "; ".join(family.pattern for family in FAMILIES)
    raise NetworkError(f"unknown network {name!r}; known are {known}")


def member_network(name: str, split: int) -> NetworkConfig:
    """The configuration of one of the `split` members that the network called `name` is divided into.

    Raises:
        NetworkError: for an unknown name or a split that no rule covers.
    """
    if split < 1:
        raise NetworkError(f"split must be at least 1, not {split}")
    return network(name).divide(split)
