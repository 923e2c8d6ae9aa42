"""Optimizers and learning-rate schedules of the recipes."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from coserve_training.config import TrainConfig

# EfficientNet's values (arXiv 1905.11946).
RMSPROP_ALPHA = 0.9
RMSPROP_EPS = 1e-3


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the recipe's optimizer: SGD with Nesterov momentum, or RMSprop with momentum."""
    rate = config.learning_rate
    momentum = config.momentum
    decay = config.member_weight_decay
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            parameters, rate, alpha=RMSPROP_ALPHA, eps=RMSPROP_EPS, momentum=momentum, weight_decay=decay
        )
    return torch.optim.SGD(parameters, rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)


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
    if config.schedule == "cosine":
        done = min(1.0, (epoch - warmup) / max(config.epochs - warmup, 1 / steps_per_epoch))
        floor = config.final_learning_rate / config.learning_rate if config.learning_rate else 0.0
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    decays = epoch / (config.decay_epochs or config.epochs / 3)
    return float(config.decay_rate ** (math.floor(decays + 1e-6) if config.schedule == "step" else decays))
