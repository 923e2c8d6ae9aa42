"""The objective: the gradients that reach the members' logits are the recipe's loss's."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.loss import co_training_loss, warm_up_weight
from tests.training.assembly.recording import LABELS, Step, label, record


def learned_targets(step: Step) -> Tensor:
    """Return the probabilities that each member learns without a co-training term, `[S, N, C]`."""
    return step.logits.softmax(-1) - step.gradient * step.logits.shape[1]


def gradient_of(loss: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def test_members_learn_the_classes_of_their_images(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(config, tmp_path / "run")
    for step in recorded.steps:
        expected = F.one_hot(step.classes(recorded.description), 3).float()
        torch.testing.assert_close(learned_targets(step), expected.expand(2, -1, -1), atol=1e-5, rtol=0)


def test_label_smoothing_spreads_its_probability(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, label_smoothing=0.3), tmp_path / "run")
    for step in recorded.steps:
        expected = 0.7 * F.one_hot(step.classes(recorded.description), 3) + 0.1
        torch.testing.assert_close(learned_targets(step), expected.expand(2, -1, -1), atol=1e-5, rtol=0)


def test_mixup_blends_classes_as_it_blends_images(config: TrainConfig, tmp_path: Path) -> None:
    weights = []
    for seed in range(2):
        plain = record(replace(config, seed=seed), tmp_path / f"plain{seed}")
        recorded = record(replace(config, mixup=1.0, seed=seed), tmp_path / f"run{seed}")
        for step, original in zip(recorded.steps, plain.steps, strict=True):
            images = original.images(plain.description)
            blends = step.images(recorded.description)
            first, second = learned_targets(step)
            torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
            # Find the weight and the pairs that explain the images; they must explain the classes too.
            own = F.one_hot(original.classes(plain.description), 3).float()
            weight = min(first[own.bool()].tolist())
            weights.append(weight)
            partners = ((blends - weight * images) / (1 - weight)).round()
            assert sorted(partners.tolist()) == sorted(images.round().tolist()), "pairs within the batch"
            of_partners = F.one_hot(torch.tensor([label(int(p)) for p in partners.tolist()]), 3)
            torch.testing.assert_close(first, weight * own + (1 - weight) * of_partners, atol=1e-4, rtol=0)
    assert len({round(weight, 3) for weight in weights}) == 12, "each step of each seed draws a weight"


@pytest.mark.parametrize("term", ["js", "kl"])
def test_the_co_training_term_has_its_warmed_up_weight(
    config: TrainConfig, tmp_path: Path, term: str
) -> None:
    changed = replace(
        config,
        co_training_term=term,  # type: ignore[arg-type]
        co_training_weight=2.0,
        co_training_warmup_epochs=1.0,
        label_smoothing=0.1,
        split=3,
    )
    recorded = record(changed, tmp_path / "run")
    losses = []
    for index, step in enumerate(recorded.steps):
        logits = step.logits.clone().requires_grad_()
        targets = step.classes(recorded.description)
        weight = warm_up_weight(2.0, index / 3, 1.0)
        assert weight == pytest.approx([0.005, 2 / 3, 4 / 3, 2, 2, 2][index])
        loss = co_training_loss(logits, targets, weight, changed.co_training_term, 0.1)
        losses.append(loss.item())
        torch.testing.assert_close(step.gradient, gradient_of(loss, logits), atol=1e-6, rtol=1e-4)
        alone = gradient_of(co_training_loss(logits, targets, 0.0, label_smoothing=0.1), logits)
        assert not torch.allclose(step.gradient, alone, atol=1e-6, rtol=1e-4)
    assert recorded.metrics("train_loss") == pytest.approx(
        [np.mean(losses[:3]), np.mean(losses[3:])], abs=2e-5
    )


def test_without_the_term_members_learn_nothing_from_each_other(config: TrainConfig, tmp_path: Path) -> None:
    together = record(replace(config, crop="padded", flip=True), tmp_path / "together")
    alone = record(replace(config, crop="padded", flip=True, split=1), tmp_path / "alone")
    for two, one in zip(together.steps, alone.steps, strict=True):
        assert torch.equal(two.views[0], one.views[0])
        torch.testing.assert_close(two.logits[0], one.logits[0])
        assert not torch.allclose(two.logits[0], two.logits[1])
    coupled = record(replace(config, crop="padded", flip=True, co_training_weight=0.5), tmp_path / "coupled")
    torch.testing.assert_close(coupled.steps[0].logits, together.steps[0].logits)
    assert not torch.allclose(coupled.steps[-1].logits[0], together.steps[-1].logits[0])


def test_class_weights_and_balanced_sampling_reach_the_loss_and_the_order(
    config: TrainConfig, coded_images: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(coded_images, tmp_path / "images")
    for file in sorted((images / "train" / LABELS[2]).iterdir())[4:]:
        file.unlink()
    uneven = replace(config, data=(str(images),), batch_size=12)
    recorded = record(replace(uneven, class_weights="balanced"), tmp_path / "weighted")
    for step in recorded.steps:
        logits = step.logits.clone().requires_grad_()
        targets = step.classes(recorded.description)
        loss = co_training_loss(logits, targets, 0.0, class_weights=torch.tensor([0.75, 0.75, 3.0]))
        torch.testing.assert_close(step.gradient, gradient_of(loss, logits), atol=1e-6, rtol=1e-4)
    shown = record(replace(uneven, sampling="balanced", epochs=1), tmp_path / "balanced")
    drawn = torch.cat([step.classes(shown.description) for step in shown.steps])
    assert torch.bincount(drawn).tolist() == [12, 12, 12]
