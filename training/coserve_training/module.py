"""The co-training step: S members learn from the same images, each from its own view of them."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.aggregation import MeanMetric

from coserve_training.config import TrainConfig
from coserve_training.data import to_pixels
from coserve_training.distributed.placement import gather_logits
from coserve_training.errors import RunError
from coserve_training.loss import co_training_loss, warm_up_weight
from coserve_training.optimise import learning_rate_factor, make_optimizer, split_by_decay
from coserve_training.views import erase_parts, mix_up

ERASE, MIXUP, FORWARD = range(3)
"""Purposes that random numbers are drawn for. Each has random streams of its own."""

Batch = tuple[Tensor, Tensor]
"""Images `[N, H, W, 3]` uint8, in training a view for each member here `[M, N, H, W, 3]`; classes `[N]`."""


class CoTraining(L.LightningModule):
    """S members with different initial weights, which learn from labels and from each other.

    Args:
        config: the recipe.
        num_classes: C.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        placed: index of the member that this process trains, if each member has a process of its own
            (distributed/placement.py); None trains all members here.
        class_weights: factor of each class's cross-entropy, `[C]`; None for 1.
        chooses: name of the split that is measured after each epoch and chooses the best one: "val", or
            "test" if there is no validation split beside the test split.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        placed: int | None = None,
        class_weights: Tensor | None = None,
        chooses: str = "test",
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.placed = placed
        self.chooses = chooses
        self._moved_steps = 0.0
        member = config.member_network()
        self.members = nn.ModuleDict()
        for index in range(config.split):
            # Build members that another process trains too: building draws the random numbers in between.
            network = member.build(num_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if placed in (None, index):
                self.members[str(index)] = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)
        # By default, MeanMetric ignores NaN.
        self.train_loss = MeanMetric(nan_strategy=math.nan)
        self.train_top1 = MeanMetric(nan_strategy=math.nan)
        self.held_out_loss = MeanMetric(nan_strategy=math.nan)
        self.held_out_top1 = MeanMetric(nan_strategy=math.nan)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise `[N, 3, H, W]` in [0, 1] to mean 0 and deviation 1 per channel, as channels-last."""
        normalised = (pixels - self.mean) / self.std  # type: ignore[operator]
        return normalised.contiguous(memory_format=torch.channels_last)

    def forward(self, views: Sequence[Tensor], step: int = 0) -> Tensor:
        """Run the members of this process, and return the logits `[S, N, C]` of all members.

        Args:
            views: one normalised view `[N, 3, H, W]` for each member of this process.
            step: index of the batch in the epoch, which seeds what networks draw in training.
        """
        logits = []
        for (index, member), view in zip(self.members.items(), views, strict=True):
            self._seed(FORWARD, step, int(index))
            logits.append(member(view))
        return torch.stack(logits) if self.placed is None else gather_logits(torch.stack(logits))

    def on_train_start(self) -> None:
        """Set the learning rate by this run's schedule: the checkpoint's rate may be for fewer epochs.

        Schedules go by epochs: those before a resume may have had another number of steps, of other images.
        """
        self._moved_steps = self.current_epoch * self._steps_per_epoch() - self.global_step
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        factor = self._learning_rate_factor(schedule.last_epoch)
        for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = rate * factor

    def _seed(self, purpose: int, step: int, member: int = 0) -> None:
        """Seed the next draws by their purpose, so that resumed runs and placed members draw the same."""
        share = self.global_rank if self.placed is None else 0
        key = [self.config.seed, self.current_epoch, share, purpose, step, member]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """Return the loss of one batch."""
        config = self.config
        images, targets = batch
        views = []
        for member, pixels in zip(self.members, images, strict=True):
            self._seed(ERASE, step, config.drawer_of(int(member)))
            views.append(erase_parts(self.normalise(to_pixels(pixels)), config))
        if config.mixup:
            self._seed(MIXUP, step)
            views, targets = mix_up(views, targets, self.num_classes, config.mixup)
        logits = self(views, step)
        weight = warm_up_weight(
            config.co_training_weight,
            self._epoch_at(self.global_step),
            config.resolved_co_training_warmup_epochs,
        )
        loss = co_training_loss(
            logits,
            targets,
            weight,
            config.co_training_term,
            config.label_smoothing,
            self.class_weights,  # type: ignore[arg-type]
        )
        self.train_loss.update(loss.detach())
        classes = targets.argmax(-1) if config.mixup else targets
        self.train_top1.update(mark_correct(logits.detach().float().mean(0), classes))
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train_top1", self.train_top1, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Measure cross-entropy and accuracy of the averaged logits; accuracy chooses the best checkpoint.

        While training images grow, these have the same size, to which batch norm's statistics belong.
        With several processes, this one's share of the last batch may be empty.
        """
        images, targets = batch
        pixels = _shrink(to_pixels(images), self.config.size_at(self.current_epoch))
        logits = self([self.normalise(pixels)] * len(self.members)).float().mean(0)
        self.held_out_loss.update(F.cross_entropy(logits, targets, reduction="none"))
        self.held_out_top1.update(mark_correct(logits, targets))
        self.log(f"{self.chooses}_loss", self.held_out_loss)
        self.log(f"{self.chooses}_top1", self.held_out_top1, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """End a diverged run in all processes, before its checkpoint is written.

        Raises:
            RunError: for a loss that is not finite.
        """
        measured = self.trainer.callback_metrics
        for phase, name in (("training", "train_loss"), (self.chooses, f"{self.chooses}_loss")):
            if not measured[name].isfinite():
                raise RunError(
                    f"the {phase} loss of epoch {self.current_epoch + 1} is not finite: training diverged; "
                    "try a lower learning_rate"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run of a version whose weight decay was on other parameters.

        Raises:
            RunError: if the optimizer's state is grouped in another way.
        """
        (optimizer,) = checkpoint["optimizer_states"]
        saved = [len(group["params"]) for group in optimizer["param_groups"]]
        if saved != [len(group) for group in split_by_decay(self, self.config.decay_norms)]:
            raise RunError(
                f"{self.trainer.ckpt_path}: written by an earlier version, whose weight decay was on all "
                "parameters, so the run cannot be resumed; start another run from its weights with --initial"
            )

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """Return the recipe's optimizer and its schedule, by step."""
        optimizer = make_optimizer(self.config, self)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self.config, self._epoch_at(step), self._steps_per_epoch())

    def _epoch_at(self, step: int) -> float:
        return (step + self._moved_steps) / self._steps_per_epoch()

    def _steps_per_epoch(self) -> float:
        return max(1, int(self.trainer.estimated_stepping_batches)) / self.config.epochs


def mark_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Mark each image `[N]` with 1 if the largest of its logits `[N, C]` is its class's, else with 0."""
    return (logits.argmax(-1) == targets).float()


def _shrink(pixels: Tensor, size: int) -> Tensor:
    """Resize `[N, 3, H, W]` bilinearly to `[N, 3, size, size]`, the size of growing training images."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
