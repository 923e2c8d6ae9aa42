"""What one training run is made of; resolved once, kept in the run folder."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from coserve_training.errors import ConfigError
from coserve_training.networks import member_network

Precision = Literal["auto", "fp32", "bf16", "fp16"]

PAPER_EPOCHS = 300
"""The length of the paper's CIFAR schedule, from which warm-ups are scaled to other lengths."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Defaults are the paper's CIFAR recipe; warm-ups left out scale with `epochs`."""

    data: tuple[str, ...]
    network: str
    split: int = 1
    epochs: int = PAPER_EPOCHS
    image_size: int = 32
    """Height and width, in pixels, that images are decoded to and served at."""
    start_size: int | None = None
    """Resolution of the first epoch, in pixels; it grows to `image_size` over the first half of the epochs
    ("progressive learning", arXiv 2104.00298). None trains at full size."""
    batch_size: int = 128
    learning_rate: float = 0.1
    final_learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float | None = None
    """Of the learning rate; 20 of 300 epochs by default."""
    co_training_weight: float = 0.5
    co_training_warmup_epochs: float | None = None
    """Of the divergence's weight; 40 of 300 epochs by default."""
    initial: str | None = None
    """Run folder whose last checkpoint the members start from; None starts from random weights."""
    precision: Precision = "auto"
    """auto: bf16 where the processor or GPU computes in it, else fp32."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: for a value out of range, naming it.
            NetworkError: for a network or a split that no rule covers.
        """
        member_network(self.network, self.split)
        if not self.data:
            raise ConfigError("data: at least one folder, zip or CIFAR file is needed")
        for name, low in (("epochs", 1), ("image_size", 8), ("batch_size", 2), ("seed", 0)):
            _at_least(name, getattr(self, name), low)
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "co_training_weight"):
            _at_least(name, getattr(self, name), 0)
        for name in ("warmup_epochs", "co_training_warmup_epochs"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 0)
        if self.start_size is not None and not 8 <= self.start_size <= self.image_size:
            raise ConfigError(
                f"start_size must be between 8 and image_size ({self.image_size}), not {self.start_size}"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), not {self.momentum}")
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision}"
            )

    @property
    def resolved_warmup_epochs(self) -> float:
        """Learning-rate warm-up in epochs."""
        return self.epochs * 20 / PAPER_EPOCHS if self.warmup_epochs is None else self.warmup_epochs

    @property
    def resolved_co_training_warmup_epochs(self) -> float:
        """Warm-up of the divergence's weight in epochs."""
        if self.co_training_warmup_epochs is None:
            return self.epochs * 40 / PAPER_EPOCHS
        return self.co_training_warmup_epochs

    def size_at(self, epoch: int) -> int:
        """Training resolution in pixels at `epoch` (from 0), a multiple of 4 that every stage can halve."""
        if self.start_size is None or 2 * epoch >= self.epochs - 1:
            return self.image_size
        grown = (self.image_size - self.start_size) * 2 * epoch / self.epochs
        return max(self.start_size, int(self.start_size + grown) // 4 * 4)

    @property
    def recipe_hash(self) -> str:
        """12 hex digits over every value but what was divided and where data and initial weights lie."""
        elsewhere = {"data", "initial", "network", "split"}
        recipe = {k: v for k, v in asdict(self).items() if k not in elsewhere}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The configuration that `asdict` turned into JSON.

        Raises:
            ConfigError: for a key that this version does not know.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown configuration {', '.join(sorted(unknown))}")
        return cls(**{**values, "data": tuple(values["data"])})


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(f"{name} must be at least {low}, not {value}")
