"""How members are updated and tested: rates, momentum and weight decay by step; the mean of all."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coserve_training.config import TrainConfig
from tests.training.assembly.recording import Recorded, record

DECAYED = {"convolution.weight", "norm.weight", "classifier.weight"}
EXEMPT = {"norm.bias", "classifier.bias"}


def trajectory(recorded: Recorded, member: int, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return a parameter's values before each step and at the end, and its gradients in each step."""
    calls = [step.calls[member] for step in recorded.steps]
    after = recorded.tests[-1].calls[member].weights[name]
    return [*(call.weights[name] for call in calls), after], [call.gradients[name] for call in calls]


def descend(start: Tensor, gradients: Sequence[Tensor], rates: Sequence[float], decay: float) -> list[Tensor]:
    """Return a parameter's values under SGD with Nesterov momentum 0.9."""
    values = [start]
    velocity = torch.zeros_like(start)
    for gradient, rate in zip(gradients, rates, strict=True):
        slope = gradient + decay * values[-1]
        velocity = 0.9 * velocity + slope
        values.append(values[-1] - rate * (slope + 0.9 * velocity))
    return values


def test_every_update_has_its_rate_momentum_and_weight_decay(config: TrainConfig, tmp_path: Path) -> None:
    changed = replace(
        config,
        epochs=4,
        warmup_epochs=1,
        learning_rate=0.2,
        final_learning_rate=0.01,
        weight_decay=0.05,
        divide_weight_decay=True,
        bias_learning_rate=0.5,
    )
    recorded = record(changed, tmp_path / "run")
    cosine = [0.01 + 0.19 * (1 + math.cos(math.pi * done / 9)) / 2 for done in range(9)]
    rates = [0.2 / 3, 0.4 / 3, 0.2, *cosine]
    for member in range(2):
        for name in DECAYED | EXEMPT:
            values, gradients = trajectory(recorded, member, name)
            decay, factor = (0.05 * math.exp(1 / 2 - 1), 1) if name in DECAYED else (0, 0.5)
            expected = descend(values[0], gradients, [factor * rate for rate in rates], decay)
            for value, wanted in zip(values, expected, strict=True):
                torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-4)


def test_rmsprop_divides_each_gradient_by_its_size_and_gathers_updates(
    config: TrainConfig, tmp_path: Path
) -> None:
    changed = replace(
        config,
        optimizer="rmsprop",
        learning_rate=0.01,
        schedule="exponential",
        decay_rate=0.5,
        decay_epochs=1.0,
        weight_decay=0.05,
    )
    recorded = record(changed, tmp_path / "run")
    values, gradients = trajectory(recorded, 1, "convolution.weight")
    value = values[0].clone()
    squares = torch.ones_like(value)
    update = torch.zeros_like(value)
    for step, gradient in enumerate(gradients):
        slope = gradient + 0.05 * value
        squares = 0.9 * squares + 0.1 * slope**2
        update = 0.9 * update + 0.01 * 0.5 ** (step / 3) * slope / (squares + 1e-3).sqrt()
        value = value - update
        torch.testing.assert_close(values[step + 1], value, atol=1e-5, rtol=1e-3)


def test_accumulated_batches_average_their_gradients(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, accumulate=3, momentum=0.0, weight_decay=0), tmp_path / "run")
    values, gradients = trajectory(recorded, 0, "classifier.weight")
    assert torch.equal(values[0], values[2])
    torch.testing.assert_close(values[3], values[0] - 0.1 * sum(gradients[:3]))
    alone = record(replace(config, momentum=0.0, weight_decay=0), tmp_path / "alone")
    torch.testing.assert_close(gradients[0], trajectory(alone, 0, "classifier.weight")[1][0] / 3)


def test_the_moving_average_is_tested_and_left(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, ema=0.25, weight_decay=0), tmp_path / "run")
    rates = [1e-4 + 0.0999 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    for name in DECAYED | EXEMPT:
        values, gradients = trajectory(recorded, 1, name)
        values = descend(values[0], gradients, rates, 0)
        average = values[1]
        for value, decay in zip(values[2:], (2 / 11, 0.25, 0.25, 0.25, 0.25), strict=True):
            average = decay * average + (1 - decay) * value
        for batch in recorded.tests[2:]:
            torch.testing.assert_close(batch.calls[1].weights[name], average, atol=1e-6, rtol=1e-4)


def test_training_accuracy_is_that_of_the_mean_of_all_members(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, split=3, epochs=4), tmp_path / "run")
    telling = 0
    for epoch, measured in enumerate(recorded.metrics("train_top1")):
        steps = recorded.steps[3 * epoch : 3 * epoch + 3]
        logits = torch.cat([step.logits for step in steps], 1)
        targets = torch.cat([step.classes(recorded.description) for step in steps])
        assert measured == pytest.approx(right(logits.mean(0), targets), abs=1e-5)
        telling += measured not in [pytest.approx(right(member, targets), abs=1e-5) for member in logits]
    assert telling > 0, "in every epoch, the mean is as good as some member"


def test_a_blend_is_right_if_it_is_taken_for_its_larger_part(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, mixup=1.0), tmp_path / "run")
    for epoch, measured in enumerate(recorded.metrics("train_top1")):
        shares = [
            right(step.logits.mean(0), (step.logits.softmax(-1) - 16 * step.gradient)[0].argmax(-1))
            for step in recorded.steps[3 * epoch : 3 * epoch + 3]
        ]
        assert measured == pytest.approx(sum(shares) / 3, abs=1e-5)


def test_test_accuracy_and_loss_are_those_of_the_mean_of_all_members(
    config: TrainConfig, image_folder: Path, tmp_path: Path
) -> None:
    changed = replace(config, data=(str(image_folder),), split=3, epochs=4, learning_rate=0.003)
    recorded = record(changed, tmp_path / "run")
    targets = torch.arange(3).repeat_interleave(10)
    telling = 0
    for epoch, measured in enumerate(recorded.metrics("test_top1")):
        batches = recorded.tests[2 * epoch : 2 * epoch + 2]
        logits = torch.cat([batch.logits for batch in batches], 1)
        assert measured == pytest.approx(right(logits.mean(0), targets), abs=1e-5)
        loss = F.cross_entropy(logits.mean(0), targets).item()
        assert recorded.metrics("test_loss")[epoch] == pytest.approx(loss, abs=2e-5)
        telling += measured not in [pytest.approx(right(member, targets), abs=1e-5) for member in logits]
    assert telling > 0, "in every epoch, the mean is as good as some member"


def right(logits: Tensor, targets: Tensor) -> float:
    """Return the share of images whose largest logit is their class's."""
    return (logits.argmax(-1) == targets).double().mean().item()
