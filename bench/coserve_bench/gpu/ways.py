"""Ways to run the members of an ensemble on a GPU: calls that launch all work and return the mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coserve_bench.gpu.devices import Call, Device
from coserve_bench.random_networks import randomise
from coserve_training.networks import member_network

CLASSES = 10
IMAGE_SIZE = 32

IN_TURN = "in turn"
STREAMS = "on streams"
GRAPHS_IN_TURN = "graphs in turn"
GRAPHS_ON_STREAMS = "graphs on streams"
ONE_GRAPH = "one graph"
"""All members are branches of a single graph."""

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Members:
    """The members that a network is divided into, on a device.

    Attributes:
        split: their number; with 1, the undivided network.
        name: their architecture.
    """

    split: int
    name: str
    networks: Sequence[nn.Module]


def build_members(network: str, split: int, precision: str, device: Device) -> Members:
    """Build the members with random weights, in evaluation mode.

    Args:
        precision: one of `PRECISIONS`.

    Raises:
        coserve_training.errors.TrainingError: the network is unknown, or cannot be divided so.
    """
    config = member_network(network, split, image_size=IMAGE_SIZE)
    networks = []
    for index in range(split):
        torch.manual_seed(index)
        member = randomise(config.build(CLASSES), IMAGE_SIZE)
        member.to(device.torch_device, PRECISIONS[precision])
        # PyTorch's types lack this keyword.
        networks.append(member.to(memory_format=_layout(precision)))  # type: ignore[call-overload]
    return Members(split, str(config), networks)


def random_images(count: int, precision: str, device: Device) -> Tensor:
    """Return a batch of random images `[N, 3, H, W]` on the device."""
    torch.manual_seed(0)
    images = torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return images.to(device.torch_device, PRECISIONS[precision], memory_format=_layout(precision))


def make_ways(members: Members, images: Tensor, device: Device) -> dict[str, Call]:
    """Return the ways to run a batch: of one network, the first and the third."""
    calls = [_bind(network, images) for network in members.networks]

    def in_turn() -> Tensor:
        return _mean([call() for call in calls])

    def on_streams() -> Tensor:
        return _mean(device.together(calls))

    graphs = [device.capture(call) for call in calls]

    def graphs_in_turn() -> Tensor:
        return _mean([graph() for graph in graphs])

    def graphs_on_streams() -> Tensor:
        return _mean(device.together(graphs))

    ways: dict[str, Call] = {IN_TURN: in_turn, GRAPHS_IN_TURN: graphs_in_turn}
    if members.split > 1:
        ways |= {STREAMS: on_streams, GRAPHS_ON_STREAMS: graphs_on_streams}
        ways[ONE_GRAPH] = device.capture(on_streams)
    return ways


def _layout(precision: str) -> torch.memory_format:
    """Return the layout for which tensor cores have the fastest convolutions."""
    return torch.channels_last if precision == "fp16" else torch.contiguous_format


def _bind(network: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(images)
        return logits

    return call


def _mean(logits: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.stack([one.float() for one in logits]).mean(dim=0)
