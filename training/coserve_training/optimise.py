"""Optimizers and learning-rate schedules of the recipes."""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from coserve_training.config import TrainConfig
from coserve_training.rmsprop import RMSprop

# EfficientNet's values (arXiv 1905.11946).
RMSPROP_ALPHA = 0.9
RMSPROP_EPS = 1e-3

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def make_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Make the recipe's optimizer: SGD with Nesterov momentum, or RMSprop with momentum."""
    rate = config.learning_rate
    decayed, exempt = split_by_decay(module, config.decay_norms)
    groups = [
        {"params": decayed, "weight_decay": config.member_weight_decay},
        {"params": exempt, "weight_decay": 0.0, "lr": rate * config.bias_learning_rate},
    ]
    momentum = config.momentum
    if config.optimizer == "rmsprop":
        return RMSprop(groups, rate, alpha=RMSPROP_ALPHA, eps=RMSPROP_EPS, momentum=momentum)
    return torch.optim.SGD(groups, rate, momentum=momentum, nesterov=momentum > 0)


def split_by_decay(module: nn.Module, norms: bool = True) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters into those that decay and the rest, each in the order of `module.parameters()`.

    As in the paper's code, weights and the scales of norms decay; biases and the shifts of norms do not.

    Args:
        module: holds the parameters.
        norms: False if the scales of norms do not decay either.
    """
    decays: dict[nn.Parameter, bool] = {}  # a parameter may belong to several modules
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            # A bias has one dimension, whatever the layer. So has a norm's scale, unlike all other weights.
            scale = isinstance(layer, NORMS) and parameter is layer.weight
            shift = isinstance(layer, NORMS) and parameter is layer.bias
            decays.setdefault(parameter, norms if scale else parameter.ndim > 1 and not shift)
    return [p for p in decays if decays[p]], [p for p in decays if not decays[p]]


def learning_rate_factor(config: TrainConfig, epoch: float, steps_per_epoch: float) -> float:
    """Return the factor of the learning rate at a point in training: a linear warm-up, then the schedule.

    Args:
        config: the recipe.
        epoch: epochs done, including the fraction of the current one.
        steps_per_epoch: updates per epoch; with it the warm-up's first update has a rate above 0.
    """
    warmup = config.resolved_warmup_epochs
    if epoch < warmup:
        return min(1.0, (epoch + 1 / steps_per_epoch) / warmup)
    if config.schedule in ("cosine", "linear"):
        done = min(1.0, (epoch - warmup) / max(config.epochs - warmup, 1 / steps_per_epoch))
        floor = config.final_learning_rate / config.learning_rate if config.learning_rate else 0.0
        left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return floor + (1 - floor) * left
    length = config.decay_epochs or config.epochs / 3
    if config.schedule == "step":
        return float(config.decay_rate ** math.floor(epoch / length + 1e-6))
    return float(config.decay_rate ** ((epoch - warmup) / length))
