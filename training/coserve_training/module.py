"""The co-training step: S members, each on its own view of the same images."""

import math
from collections.abc import Sequence

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.aggregation import MeanMetric

from coserve_training.config import TrainConfig
from coserve_training.data import to_pixels
from coserve_training.distributed.placement import everyones
from coserve_training.errors import RunError
from coserve_training.loss import co_training_loss, warmed_up
from coserve_training.optimise import learning_rate_factor, make_optimizer
from coserve_training.views import Views
from coserve_training.views.mixup import mix_up

VIEW, MIXUP, FORWARD = range(3)
"""What is drawn for a batch."""

Batch = tuple[Tensor, Tensor]
"""Images `[N, H, W, 3]` uint8, or each member's crops of them `[S, N, H, W, 3]`, and classes `[N]` int64."""


class CoTraining(L.LightningModule):
    """S members with different initial weights that learn from labels and from each other.

    Args:
        config: the recipe.
        num_classes: C.
        mean: of each channel, of pixels in [0, 1].
        std: likewise.
        placed: the member that this process trains, where the others are trained in processes of their own
            (placement.py); None trains all here.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        placed: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.num_classes, self.placed = config, num_classes, placed
        member = config.member_network()
        self.members = nn.ModuleDict()
        for index in range(config.split):
            # Built even where it is not kept: the next one's weights are drawn after it.
            network = member.build(num_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if placed in (None, index):
                self.members[str(index)] = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        # By default they leave out what is no number.
        self.train_loss, self.train_top1, self.test_loss, self.test_top1 = (
            MeanMetric(nan_strategy=math.nan) for _ in range(4)
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """`[N, 3, H, W]` in [0, 1] to zero mean and unit deviation per channel, channels last in memory."""
        normalised = (pixels - self.mean) / self.std  # type: ignore[operator]
        return normalised.contiguous(memory_format=torch.channels_last)

    def forward(self, views: Sequence[Tensor], step: int = 0) -> Tensor:
        """One normalised `[N, 3, H, W]` view for each member here to the logits `[S, N, C]` of all.

        Args:
            views: of the members here, in their order.
            step: in the epoch; what networks draw in training depends on it.
        """
        logits = []
        for (index, member), view in zip(self.members.items(), views, strict=True):
            self._seed(FORWARD, step, int(index))
            logits.append(member(view))
        return torch.stack(logits) if self.placed is None else everyones(torch.stack(logits))

    def on_train_epoch_start(self) -> None:
        """Views of this epoch's size."""
        self.views = Views(self.config, self.config.size_at(self.current_epoch), self.device)

    def _seed(self, what: int, step: int, member: int = 0) -> None:
        """Let what is drawn next depend on what it is for alone, be the run resumed or its members placed."""
        share = self.global_rank if self.placed is None else 0
        key = [self.config.seed, self.current_epoch, share, what, step, member]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """Loss of one batch."""
        config, targets = self.config, batch[1]
        # Half precision would move the grid that views are sampled at by whole pixels.
        with torch.autocast(self.device.type, enabled=False):
            views = self._views(batch[0], step)
            if config.mixup:
                self._seed(MIXUP, step)
                views, targets = mix_up(views, targets, self.num_classes, config.mixup)
        logits = self(views, step)
        weight = warmed_up(
            config.co_training_weight, self._epoch_now(), config.resolved_co_training_warmup_epochs
        )
        loss = co_training_loss(logits, targets, weight, config.co_training_term, config.label_smoothing)
        self.train_loss.update(loss.detach())
        classes = targets.argmax(-1) if config.mixup else targets
        self.train_top1.update(hits(logits.detach().float().mean(0), classes))
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train_top1", self.train_top1, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _views(self, images: Tensor, step: int) -> list[Tensor]:
        """A view for each member here, of images `[N, H, W, 3]` or of its crops in `[S, N, H, W, 3]`."""
        size, views = self.config.size_at(self.current_epoch), []
        shared = None if images.ndim == 5 else resized(to_pixels(images), size)
        for member in map(int, self.members):
            self._seed(VIEW, step, member)
            crop = resized(to_pixels(images[member]), size) if shared is None else shared
            views.append(self.views.erase(self.normalise(self.views.augment(crop))))
        return views

    def validation_step(self, batch: Batch, _: int) -> None:
        """Cross-entropy and accuracy of the averaged logits; the latter chooses the best checkpoint.

        Of several processes, one may have no share of the last batch.
        """
        images, targets = self.normalise(to_pixels(batch[0])), batch[1]
        logits = self([images] * len(self.members)).float().mean(0)
        self.test_loss.update(F.cross_entropy(logits, targets, reduction="none"))
        self.test_top1.update(hits(logits, targets))
        self.log("test_loss", self.test_loss)
        self.log("test_top1", self.test_top1, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """End a run that has diverged, in all processes, before its checkpoint is written.

        Raises:
            RunError: for a loss that is not finite.
        """
        measured = self.trainer.callback_metrics
        for what, name in (("training", "train_loss"), ("test", "test_loss")):
            if not measured[name].isfinite():
                raise RunError(
                    f"the {what} loss of epoch {self.current_epoch + 1} is not finite: training diverged; "
                    "a lower learning_rate may help"
                )

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """The recipe's optimizer, and its schedule by step."""
        optimizer = make_optimizer(self.config, self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        steps = self._steps_per_epoch()
        return learning_rate_factor(self.config, step / steps, steps)

    def _epoch_now(self) -> float:
        return self.global_step / self._steps_per_epoch()

    def _steps_per_epoch(self) -> float:
        return max(1, int(self.trainer.estimated_stepping_batches)) / self.config.epochs


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """1 for each image `[N]` whose largest logit, of `[N, C]`, is its class's; 0 for the others."""
    return (logits.argmax(-1) == targets).float()


def resized(pixels: Tensor, size: int) -> Tensor:
    """`[N, 3, H, W]` to `[N, 3, size, size]`."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
