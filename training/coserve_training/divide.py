"""What dividing a network costs and saves: parameters and multiply-adds, before and after."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from coserve_training.networks import member_network
from coserve_training.networks.config import NetworkConfig

DATASETS = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet": (1000, 224)}
"""Number of classes and image size in pixels by data set."""


@dataclass(frozen=True)
class Cost:
    """Learnable parameters, and multiply-adds of one image through convolutions and linear layers."""

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Division:
    """A network beside the ensemble it is divided into."""

    network: str
    split: int
    member_network: str
    undivided: Cost
    member: Cost

    @property
    def total(self) -> Cost:
        """Of all members together."""
        return Cost(self.split * self.member.parameters, self.split * self.member.multiply_adds)


def divide(name: str, split: int, num_classes: int, image_size: int) -> Division:
    """Count a network and its division into `split` members.

    Args:
        name: as in `coserve_training.networks`.
        split: number of members S.
        num_classes: outputs of the classifier.
        image_size: height and width in pixels.

    Raises:
        NetworkError: for an unknown network or a split that no rule covers.
    """
    member = member_network(name, split)
    return Division(
        network=name,
        split=split,
        member_network=str(member),
        undivided=count(member_network(name, 1), num_classes, image_size),
        member=count(member, num_classes, image_size),
    )


def count(config: NetworkConfig, num_classes: int, image_size: int) -> Cost:
    """Parameters and multiply-adds, counted without allocating weights."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = config.build(num_classes).eval()
        network(torch.empty(1, 3, image_size, image_size))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)
