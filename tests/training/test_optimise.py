from dataclasses import replace

import pytest
import torch
from torch import nn

from coserve_training.config import TrainConfig
from coserve_training.optimise import learning_rate_factor, make_optimizer


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("x",), network="resnet20", split=2, epochs=30, warmup_epochs=5)


def factors(config: TrainConfig, epochs: list[float]) -> list[float]:
    return [learning_rate_factor(config, epoch, 10) for epoch in epochs]


def test_cosine_follows_a_linear_warm_up(config: TrainConfig) -> None:
    assert factors(config, [0, 2.4, 4.9]) == pytest.approx([0.02, 0.5, 1])
    end = config.final_learning_rate / config.learning_rate
    assert factors(config, [5, 17.5, 30, 31]) == pytest.approx([1, 0.5 + end / 2, end, end])


def test_exponential_decay_by_the_epoch(config: TrainConfig) -> None:
    falling = replace(config, schedule="exponential", decay_rate=0.97, decay_epochs=2.4)
    assert factors(falling, [7.2, 24]) == pytest.approx([0.97**3, 0.97**10])


def test_steps_come_at_whole_multiples(config: TrainConfig) -> None:
    stepping = replace(config, schedule="step")
    assert factors(stepping, [9.9, 10, 19.9, 20, 29.9]) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_no_warm_up_starts_at_the_full_rate(config: TrainConfig) -> None:
    assert factors(replace(config, warmup_epochs=0), [0]) == [1]


def test_optimizers_take_the_recipes_values(config: TrainConfig) -> None:
    decayed = replace(config, weight_decay=1e-3, divide_weight_decay=True)
    sgd = make_optimizer(decayed, [nn.Parameter(torch.zeros(1))])
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["nesterov"] is True
    assert sgd.defaults["weight_decay"] == pytest.approx(6.0653e-4, rel=1e-4)
    rmsprop = make_optimizer(replace(config, optimizer="rmsprop"), [nn.Parameter(torch.zeros(1))])
    assert isinstance(rmsprop, torch.optim.RMSprop)
    assert (rmsprop.defaults["momentum"], rmsprop.defaults["alpha"]) == (0.9, 0.9)
