"""The interface of a family of networks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from coserve_training.errors import NetworkError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ABC):
    """An architecture without weights. Each family is a subclass, listed in `FAMILIES`."""

    dropout: float = 0.0
    """Probability of dropping a feature before the classifier."""
    drop_path: float = 0.0
    """Probability of dropping the last residual branch; it grows linearly with depth (arXiv 1603.09382)."""

    pattern: ClassVar[str]
    """The form of the family's names, for messages."""
    cifar_examples: ClassVar[tuple[str, ...]] = ()
    """Some of its names for images of about 32 pixels."""
    imagenet_examples: ClassVar[tuple[str, ...]] = ()
    """Some of its names for photographs."""

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> "NetworkConfig | None":
        """Return the architecture that `name` stands for; None if the name belongs to another family.

        Raises:
            NetworkError: for an impossible depth or width.
        """

    @abstractmethod
    def divide(self, split: int) -> "NetworkConfig":
        """Return the architecture of one of `split` members. `member_network` divides the probabilities.

        Raises:
            NetworkError: for a split that no rule covers.
        """

    def for_images(self, size: int) -> "NetworkConfig":
        """Return the variant for images of `size` pixels. Most families have one for all sizes."""
        return self

    def in_less_memory(self) -> "NetworkConfig":
        """Return the variant that recomputes activations in the backward pass instead of keeping them.

        Raises:
            NetworkError: for a family without one.
        """
        raise NetworkError(f"memory_efficient: {self} has no such mode, only densenet… has")

    @abstractmethod
    def build(self, num_classes: int) -> nn.Module:
        """Build a network with random weights, which maps `[N, 3, H, W]` to logits `[N, num_classes]`."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the name, with a suffix for changes by dividing."""
