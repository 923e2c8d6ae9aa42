"""Filling our networks with the authors' weights."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from coserve_export.authors.naming import Names
from coserve_export.authors.naming.bottleneck import resnet_names, senet_names
from coserve_export.authors.naming.dense import official_names, plain_names
from coserve_export.authors.naming.efficientnet import flat_names, staged_names
from coserve_export.authors.naming.pyramid import pyramidnet_names, shake_shake_names
from coserve_export.errors import NetworkError
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.densenet import DenseNetConfig
from coserve_training.networks.efficientnet import EfficientNetConfig
from coserve_training.networks.pyramidnet import PyramidNetConfig
from coserve_training.networks.resnet import ResNetConfig
from coserve_training.networks.resnexst import ResNeXStConfig
from coserve_training.networks.resnext import ResNeXtConfig
from coserve_training.networks.shake_shake import ShakeShakeConfig

NAMED = 3
COUNTER = "num_batches_tracked"


def build_member(config: NetworkConfig, classes: int, weights: dict[str, Tensor], subject: str) -> nn.Module:
    """Build a network in evaluation mode with the authors' weights.

    Args:
        config: the member's architecture.
        classes: the number of classes.
        weights: the weights by the authors' names, without `models.<member>.`.
        subject: whose weights these are, for messages.

    Raises:
        NetworkError: a weight is missing, left over, or of another shape.
    """
    with torch.device("meta"):
        network = cast(nn.Sequential, config.build(classes))
    remaining = dict(weights)
    if isinstance(config, ShakeShakeConfig):
        _adapt_shake_shake(remaining, network)
    ours = {layer: name for name, layer in network.named_modules()}
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    for prefix, layer in layer_names(config, network):
        for key, expected in layer.state_dict().items():
            theirs = f"{prefix}.{key}"
            tensor = remaining.pop(theirs, None)
            if tensor is None:
                if key == COUNTER:
                    tensor = torch.zeros((), dtype=torch.int64)
                else:
                    missing.append(theirs)
                    continue
            if tensor.shape != expected.shape:
                misshapen.append(f"{theirs} is {list(tensor.shape)}, not {list(expected.shape)}")
                continue
            state[f"{ours[layer]}.{key}"] = tensor.to(expected.dtype)
    faults = [
        *_list(missing, "missing"),
        *_list(list(remaining), "left over"),
        *_list(misshapen, "of another shape"),
    ]
    if faults:
        raise NetworkError(f"{subject} does not hold the weights of {config}: {'; '.join(faults)}")
    network.load_state_dict(state, assign=True)
    return network.eval()


def layer_names(config: NetworkConfig, network: nn.Sequential) -> Names:
    """Yield the authors' names of a network's layers, and the layers."""
    if isinstance(config, DenseNetConfig):
        return official_names(network) if config.normed_stem else plain_names(network)
    if isinstance(config, EfficientNetConfig):
        if config.same_padding is None:
            return staged_names(network, config.variant)
        return flat_names(network)
    if isinstance(config, PyramidNetConfig):
        return pyramidnet_names(network)
    if isinstance(config, ShakeShakeConfig):
        return shake_shake_names(network)
    if isinstance(config, ResNeXStConfig):
        return senet_names(network)
    if isinstance(config, ResNetConfig | ResNeXtConfig) and config.squeeze_excitation:
        return senet_names(network)
    return resnet_names(network)


def _adapt_shake_shake(weights: dict[str, Tensor], network: nn.Sequential) -> None:
    """Fold the first convolution's bias into its norm, and drop shortcuts that the authors never run.

    Each of their blocks has a shortcut with weights, but only blocks that change the width use it.
    """
    bias = weights.pop("conv_1.bias", None)
    mean = weights.get("bn_1.running_mean")
    if bias is not None and mean is not None and bias.shape == mean.shape:
        weights["bn_1.running_mean"] = mean - bias
    named = [name for name, _ in shake_shake_names(network)]
    blocks = {name.partition(".branch")[0] for name in named if ".branch" in name}
    unused = blocks - {name.partition(".shortcut")[0] for name in named if ".shortcut" in name}
    for name in list(weights):
        block, shortcut, _ = name.partition(".shortcut.")
        if shortcut and block in unused:
            del weights[name]


def _list(names: list[str], fault: str) -> Iterable[str]:
    if names:
        more = ", …" if len(names) > NAMED else ""
        yield f"{len(names)} {fault} ({', '.join(names[:NAMED])}{more})"
