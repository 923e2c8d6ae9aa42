"""The co-training step: S members, each on its own view of the same images."""

import math
from collections.abc import Sequence

import kornia.augmentation as K
import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from coserve_training.config import TrainConfig
from coserve_training.loss import co_training_loss, warmed_up
from coserve_training.networks import member_network

Batch = tuple[Tensor, Tensor]
"""Images `[N, H, W, 3]` uint8 and classes `[N]` int64."""


class CoTraining(L.LightningModule):
    """S members with different initial weights that learn from labels and from each other."""

    def __init__(
        self, config: TrainConfig, num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        member = member_network(config.network, config.split)
        self.members = nn.ModuleList(
            member.build(num_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for _ in range(config.split)
        )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.train_loss = MeanMetric()
        self.test_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.test_loss = MeanMetric()

    def normalise(self, images: Tensor) -> Tensor:
        """`[N, H, W, 3]` uint8 to `[N, 3, H, W]` float32, channels last in memory."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        return (pixels - self.mean) / self.std  # type: ignore[operator]

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """One normalised `[N, 3, H, W]` view per member to logits `[S, N, C]`."""
        return torch.stack([member(view) for member, view in zip(self.members, views, strict=True)])

    def on_train_epoch_start(self) -> None:
        """Seed by epoch, so that a resumed run sees the views that an unbroken one would have seen."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch)
        size = self.config.size_at(self.current_epoch)
        self.view = K.AugmentationSequential(
            K.RandomCrop((size, size), padding=max(1, size // 8)), K.RandomHorizontalFlip()
        )

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of one batch."""
        images, targets = self.normalise(batch[0]), batch[1]
        size = self.config.size_at(self.current_epoch)
        if size != images.shape[-1]:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        views = [self.view(images).contiguous(memory_format=torch.channels_last) for _ in self.members]
        logits = self(views)
        weight = warmed_up(
            self.config.co_training_weight, self._epoch_now(), self.config.resolved_co_training_warmup_epochs
        )
        loss = co_training_loss(logits, targets, weight)
        self.train_loss.update(loss.detach())
        self.train_top1.update(logits.detach().float().mean(0), targets)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train_top1", self.train_top1, on_step=False, on_epoch=True, prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Cross-entropy and accuracy of the averaged logits; the latter chooses the best checkpoint."""
        images, targets = self.normalise(batch[0]), batch[1]
        logits = self([images] * len(self.members)).float().mean(0)
        self.test_loss.update(F.cross_entropy(logits, targets), len(targets))
        self.test_top1.update(logits, targets)
        self.log("test_loss", self.test_loss, logger=False)
        self.log("test_top1", self.test_top1, prog_bar=True, logger=False)

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """SGD with Nesterov momentum; warm-up, then cosine, by step."""
        config = self.config
        optimizer = torch.optim.SGD(
            self.parameters(),
            config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(total * self.config.resolved_warmup_epochs / self.config.epochs)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        floor = (
            self.config.final_learning_rate / self.config.learning_rate if self.config.learning_rate else 0.0
        )
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def _epoch_now(self) -> float:
        return self.global_step * self.config.epochs / max(1, int(self.trainer.estimated_stepping_batches))
