"""Count parameters and multiply-adds, of a network and of the members it is divided into."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from coserve_training.networks import member_network
from coserve_training.networks.config import NetworkConfig

aten = torch.ops.aten

DATASETS = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet": (1000, 224)}
"""Number of classes and image size in pixels by data set."""


@dataclass(frozen=True)
class Cost:
    """Learnable parameters, and multiply-adds for one image.

    As in the paper's tables, multiply-adds count convolutions and linear layers, two per element of a batch
    norm, and one per input element of an average pool. Norms and pools add 0.1 to 7%.
    """

    parameters: int
    multiply_adds: int

    def times(self, networks: int) -> "Cost":
        """Return the cost of several such networks together."""
        return Cost(networks * self.parameters, networks * self.multiply_adds)


@dataclass(frozen=True)
class DividedCost:
    """What a network costs, undivided and divided into members.

    Attributes:
        network: name of the undivided network.
        split: number of members S.
        member_network: name of one member's architecture.
        undivided: cost of the undivided network.
        member: cost of one member.
    """

    network: str
    split: int
    member_network: str
    undivided: Cost
    member: Cost

    @property
    def total(self) -> Cost:
        """Cost of all members together."""
        return self.member.times(self.split)


def cost(network: str, split: int, num_classes: int = 10, image_size: int = 32) -> DividedCost:
    """Count a network and the members it is divided into.

    Args:
        network: a name such as `wide_resnet28_10` (docs/reference/networks.md).
        split: number of members S.
        num_classes: outputs of the classifier.
        image_size: height and width in pixels.

    Raises:
        NetworkError: for an unknown network, or a split that no rule covers.
    """
    member = member_network(network, split, image_size=image_size)
    undivided = member_network(network, 1, image_size=image_size)
    return DividedCost(
        network=network,
        split=split,
        member_network=str(member),
        undivided=count(undivided, num_classes, image_size),
        member=count(member, num_classes, image_size),
    )


@functools.cache
def count(config: NetworkConfig, num_classes: int, image_size: int) -> Cost:
    """Count one network's parameters and multiply-adds, without allocating weights."""
    with torch.device("meta"), torch.no_grad(), _Counter() as counter:
        network = config.build(num_classes).eval()
        network(torch.empty(1, 3, image_size, image_size))
    return Cost(sum(p.numel() for p in network.parameters()), counter.multiply_adds)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-adds of every operation inside its context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.multiply_adds = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation = func.overloadpacket
        if operation == aten.native_batch_norm:  # not run: its meta kernel is the slowest
            self.multiply_adds += 2 * args[0].numel()
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        result = func(*args, **(kwargs or {}))
        if operation in flop_registry:  # counts a multiply-add as two operations
            self.multiply_adds += flop_registry[operation](*args, **(kwargs or {}), out_val=result) // 2
        elif operation in (aten.mean, aten.avg_pool2d, aten._adaptive_avg_pool2d):
            self.multiply_adds += args[0].numel()
        return result
