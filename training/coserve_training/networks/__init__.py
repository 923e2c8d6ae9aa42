"""Network architectures by name, and the members they are divided into.

config.py      the interface of a family of networks
layers.py      building blocks that families share
bottleneck.py  stages of bottlenecks, which resnet.py, resnext.py and wide_resnet.py share
All other modules hold one family each.
"""

import functools
import math
import re
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from coserve_training.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.densenet import DenseNetConfig
from coserve_training.networks.efficientnet import EfficientNetConfig
from coserve_training.networks.pyramidnet import PyramidNetConfig
from coserve_training.networks.resnet import ResNetConfig
from coserve_training.networks.resnexst import ResNeXStConfig
from coserve_training.networks.resnext import ResNeXtConfig
from coserve_training.networks.shake_shake import ShakeShakeConfig
from coserve_training.networks.wide_resnet import ImageNetWideResNetConfig, WideResNetConfig

FAMILIES: tuple[type[NetworkConfig], ...] = (
    ResNetConfig,
    ResNeXtConfig,
    ResNeXStConfig,
    ImageNetWideResNetConfig,
    WideResNetConfig,
    DenseNetConfig,
    PyramidNetConfig,
    ShakeShakeConfig,
    EfficientNetConfig,
)

LARGEST = 2000
"""Largest number in a name. It exceeds every published network, and counting one already takes minutes."""


@functools.cache
def families() -> tuple[type[NetworkConfig], ...]:
    """Return `FAMILIES` and the families that installed packages register as `coserve.networks` entry points.

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


def parse_network(name: str) -> NetworkConfig:
    """Return the architecture that `name` stands for.

    Raises:
        NetworkError: for an unknown name, or an impossible depth or width.
    """
    if any(float(number) > LARGEST for number in re.findall(r"\d+", name)):
        raise NetworkError(f"{name}: the numbers in a network's name must be at most {LARGEST}")
    for family in families():
        config = family.parse(name)
        if config is not None:
            return config
    raise NetworkError(f"unknown network {name!r}{_nearest(name)}; coserve networks lists examples")


def _nearest(name: str) -> str:
    """Return a hint at the example that resembles a name most, if any does."""
    families_of = {
        example: family
        for family in families()
        for example in (*family.cifar_examples, *family.imagenet_examples)
    }
    found = get_close_matches(name, families_of, n=1)
    return f", the nearest is {found[0]}: {families_of[found[0]].pattern}" if found else ""


def member_network(
    name: str,
    split: int,
    *,
    image_size: int | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    memory_efficient: bool = False,
) -> NetworkConfig:
    """Divide a network, and return the architecture of one of its `split` members.

    Args:
        name: name of the undivided network, such as `wide_resnet28_10`.
        split: number of members S; 1 leaves the network undivided.
        image_size: height and width of the images in pixels. EfficientNet has a variant for small images; by
            default images are large photographs.
        dropout: dropout of the undivided network, instead of its family's default. Members have 1/√S of it
            (paper, section III).
        drop_path: drop probability of the undivided network's residual branches, likewise.
        memory_efficient: train in less memory, taking more time.

    Raises:
        NetworkError: for an unknown name, a split that no rule covers, or a family without a memory-efficient
            mode.
    """
    if split < 1:
        raise NetworkError(f"split must be at least 1, not {split}")
    undivided = parse_network(name)
    if image_size is not None:
        undivided = undivided.for_images(image_size)
    if memory_efficient:
        undivided = undivided.in_less_memory()
    return replace(
        undivided.divide(split),
        dropout=(undivided.dropout if dropout is None else dropout) / math.sqrt(split),
        drop_path=(undivided.drop_path if drop_path is None else drop_path) / math.sqrt(split),
    )
