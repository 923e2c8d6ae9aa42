"""The networks Coserve divides, by name."""

import functools
import math
import re
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from coserve_training.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.densenet import DenseNetConfig
from coserve_training.networks.efficientnet import EfficientNetConfig
from coserve_training.networks.pyramidnet import PyramidNetConfig
from coserve_training.networks.resnet import ResNetConfig
from coserve_training.networks.resnext import ResNeXtConfig
from coserve_training.networks.shake_shake import ShakeShakeConfig
from coserve_training.networks.wide_resnet import ImageNetWideResNetConfig, WideResNetConfig

FAMILIES: tuple[type[NetworkConfig], ...] = (
    ResNetConfig,
    ResNeXtConfig,
    ImageNetWideResNetConfig,
    WideResNetConfig,
    DenseNetConfig,
    PyramidNetConfig,
    ShakeShakeConfig,
    EfficientNetConfig,
)

LARGEST = 2000
"""Number in a name: beyond what is published, and already minutes to count what it stands for."""


@functools.cache
def families() -> tuple[type[NetworkConfig], ...]:
    """`FAMILIES`, then those that installed packages name in their entry points `coserve.networks`.

    Raises:
        NetworkError: for an entry point that cannot be loaded.
    """
    return (*FAMILIES, *(_load(point) for point in entry_points(group="coserve.networks")))


def _load(point: EntryPoint) -> type[NetworkConfig]:
    try:
        family: type[NetworkConfig] = point.load()
    except (ImportError, AttributeError) as error:
        raise NetworkError(f"cannot load the network {point.name} = {point.value}: {error}") from error
    return family


def network(name: str) -> NetworkConfig:
    """The configuration that `name` stands for.

    Raises:
        NetworkError: for an unknown name, or one whose depth or width no network can have.
    """
    if any(float(number) > LARGEST for number in re.findall(r"\d+", name)):
        raise NetworkError(f"{name}: the numbers in a network's name must be at most {LARGEST}")
    for family in families():
        config = family.parse(name)
        if config is not None:
            return config
    known = "; ".join(family.pattern for family in families())
    raise NetworkError(f"unknown network {name!r}; known are {known} (examples: coserve networks)")


def member_network(
    name: str,
    split: int,
    *,
    image_size: int | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    memory_efficient: bool = False,
) -> NetworkConfig:
    """The configuration of one of the `split` members that the network called `name` is divided into.

    Args:
        name: of the undivided network.
        split: number of members S.
        image_size: height and width in pixels that the network is for, which few families ask; None is a
            photograph's.
        dropout: of the undivided network, in place of its family's; members have it divided by √S
            (paper, section III).
        drop_path: likewise.
        memory_efficient: whether to train in less memory and more time.

    Raises:
        NetworkError: for an unknown name, a split that no rule covers, or a family that cannot train in less
            memory.
    """
    if split < 1:
        raise NetworkError(f"split must be at least 1, not {split}")
    undivided = network(name)
    if image_size is not None:
        undivided = undivided.for_images(image_size)
    if memory_efficient:
        undivided = undivided.in_less_memory()
    return replace(
        undivided.divide(split),
        dropout=(undivided.dropout if dropout is None else dropout) / math.sqrt(split),
        drop_path=(undivided.drop_path if drop_path is None else drop_path) / math.sqrt(split),
    )
