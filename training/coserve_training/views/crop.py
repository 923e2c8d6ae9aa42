"""Random crops and flips of a batch."""

import kornia.augmentation as K
import torch
from torch import nn

from coserve_training.config import TrainConfig


def make_crop(config: TrainConfig, size: int, device: torch.device) -> nn.Module | None:
    """Return the recipe's crop to `size` × `size` pixels and its flip; None if it has neither."""
    operations = []
    if config.crop == "padded":  # "resized" crops are cut while photographs are decoded: data/lazy.py
        operations.append(K.RandomCrop((size, size), padding=max(1, size // 8)))
    if config.flip:
        operations.append(K.RandomHorizontalFlip())
    return K.AugmentationSequential(*operations).to(device) if operations else None
