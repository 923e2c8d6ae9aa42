import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from coserve_training.config import TrainConfig
from coserve_training.module import CoTraining
from coserve_training.optimise import learning_rate_factor, make_optimizer, split_by_decay
from coserve_training.rmsprop import RMSprop


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("x",), network="resnet20", split=2, epochs=30, warmup_epochs=5)


def factors(config: TrainConfig, epochs: list[float]) -> list[float]:
    return [learning_rate_factor(config, epoch, 10) for epoch in epochs]


def test_cosine_follows_a_linear_warm_up(config: TrainConfig) -> None:
    assert factors(config, [0, 2.4, 4.9, 4.95]) == pytest.approx([0.02, 0.5, 1, 1])
    end = config.final_learning_rate / config.learning_rate
    quarter = end + (1 - end) * (2 + math.sqrt(2)) / 4
    assert factors(config, [5, 11.25, 17.5, 30, 31]) == pytest.approx([1, quarter, 0.5 + end / 2, end, end])


def test_a_linear_schedule_falls_from_the_warm_up_to_the_end(config: TrainConfig) -> None:
    straight = replace(config, schedule="linear", final_learning_rate=0.01)
    assert factors(straight, [2.4, 4.9, 5, 11.25, 30, 31]) == pytest.approx([0.5, 1, 1, 0.775, 0.1, 0.1])


def test_a_rate_of_0_has_a_schedule_too(config: TrainConfig) -> None:
    assert factors(replace(config, learning_rate=0.0), [5, 30]) == pytest.approx([1, 0])


def test_exponential_decay_begins_after_the_warm_up(config: TrainConfig) -> None:
    falling = replace(config, schedule="exponential", decay_rate=0.97, decay_epochs=2.4)
    assert factors(falling, [5, 7.4, 29]) == pytest.approx([1, 0.97, 0.97**10])


def test_steps_come_at_whole_multiples(config: TrainConfig) -> None:
    stepping = replace(config, schedule="step")
    assert factors(stepping, [9.9, 10, 19.9, 20, 29.9]) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_no_warm_up_starts_at_the_full_rate(config: TrainConfig) -> None:
    assert factors(replace(config, warmup_epochs=0), [0]) == [1]


def test_optimizers_take_the_recipes_values(config: TrainConfig) -> None:
    sgd = make_optimizer(config, nn.Linear(1, 1))
    assert isinstance(sgd, torch.optim.SGD)
    assert [group["nesterov"] for group in sgd.param_groups] == [True, True]
    rmsprop = make_optimizer(replace(config, optimizer="rmsprop"), nn.Linear(1, 1))
    assert isinstance(rmsprop, RMSprop)
    for group in rmsprop.param_groups:
        assert (group["lr"], group["momentum"], group["alpha"], group["eps"]) == (0.1, 0.9, 0.9, 1e-3)


def test_biases_have_a_learning_rate_of_their_own(config: TrainConfig) -> None:
    fast = replace(config, bias_learning_rate=4.0, weight_decay=0.0)
    layer = nn.Linear(1, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter).grad = torch.ones_like(parameter)
    make_optimizer(replace(fast, momentum=0.0), layer).step()
    assert layer.bias.item() == pytest.approx(4 * layer.weight.item())


class Odd(nn.Module):
    """Layers whose names mislead, and parameters that no layer of torch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_bias = nn.Conv2d(3, 4, 1)
        self.conv = nn.GroupNorm(2, 4)
        self.weight = nn.LayerNorm([4, 5])
        self.tied = self.norm_bias
        self.offset = nn.Parameter(torch.zeros(4))
        self.kernel = nn.Parameter(torch.zeros(2, 2))
        self.plain = nn.BatchNorm2d(4, affine=False)


def test_weights_and_scales_of_norms_decay_alone() -> None:
    module = Odd()
    decayed, exempt = split_by_decay(module)
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    assert [named[id(p)] for p in decayed] == ["kernel", "norm_bias.weight", "conv.weight", "weight.weight"]
    assert [named[id(p)] for p in exempt] == ["offset", "norm_bias.bias", "conv.bias", "weight.bias"]
    assert [named[id(p)] for p in split_by_decay(module, norms=False)[0]] == ["kernel", "norm_bias.weight"]


@pytest.mark.parametrize(("optimizer", "norms"), [("sgd", True), ("sgd", False), ("rmsprop", True)])
def test_one_update_decays_only_what_should(
    config: TrainConfig, optimizer: Literal["sgd", "rmsprop"], norms: bool
) -> None:
    """With gradients of 0, an update changes exactly the parameters that decay."""
    decaying = replace(
        config, optimizer=optimizer, weight_decay=1e-3, divide_weight_decay=True, decay_norms=norms
    )
    members = CoTraining(decaying, 10, [0.5] * 3, [0.2] * 3).members
    with torch.no_grad():
        for parameter in members.parameters():
            parameter.fill_(1).grad = torch.zeros_like(parameter)
    made = make_optimizer(decaying, members)
    made.step()
    changed = {name for name, parameter in members.named_parameters() if (parameter != 1).any()}
    kinds = (nn.Conv2d, nn.Linear, *([nn.BatchNorm2d] if norms else []))
    layers = {name for name, layer in members.named_modules() if isinstance(layer, kinds)}
    assert changed == {f"{name}.weight" for name in layers}
    assert made.param_groups[0]["weight_decay"] == pytest.approx(6.0653e-4, rel=1e-4)


@pytest.mark.parametrize("norms", [True, False])
def test_a_run_can_be_resumed_with_its_own_groups(config: TrainConfig, norms: bool) -> None:
    module = CoTraining(replace(config, decay_norms=norms), 10, [0.5] * 3, [0.2] * 3)
    module.on_load_checkpoint({"optimizer_states": [make_optimizer(module.config, module).state_dict()]})


def test_rmsprop_follows_tensorflows_rules() -> None:
    """The average starts at 1, epsilon is within the root, and earlier updates keep their learning rates."""
    parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    groups = [{"params": [parameter], "weight_decay": 0.1}]
    optimizer = RMSprop(groups, 0.5, alpha=0.9, eps=1e-3, momentum=0.8)
    value = 2.0
    average = 1.0
    update = 0.0
    for gradient, rate in ((3.0, 0.5), (-1.0, 0.5), (2.0, 0.05)):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        decayed = gradient + 0.1 * value
        average = 0.9 * average + 0.1 * decayed**2
        update = 0.8 * update + rate * decayed / math.sqrt(average + 1e-3)
        value -= update
        assert parameter.item() == pytest.approx(value, rel=1e-12)
