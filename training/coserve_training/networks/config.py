"""What every family's configuration offers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from coserve_training.errors import NetworkError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ABC):
    """An architecture without weights. A family is a subclass of this, named in `FAMILIES`."""

    dropout: float = 0.0
    """Probability of a feature being dropped before the classifier."""
    drop_path: float = 0.0
    """Probability of the last residual branch being dropped, linear in depth (arXiv 1603.09382)."""

    pattern: ClassVar[str]
    """The names of the family, for messages."""
    cifar_examples: ClassVar[tuple[str, ...]] = ()
    """Some of its names that are for images of about 32 pixels."""
    imagenet_examples: ClassVar[tuple[str, ...]] = ()
    """Some that are for photographs."""

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> "NetworkConfig | None":
        """The configuration that `name` stands for, or None if it is of another family.

        Raises:
            NetworkError: for a depth or width that no network of the family can have.
        """

    @abstractmethod
    def divide(self, split: int) -> "NetworkConfig":
        """The architecture of one of `split` members; `member_network` divides the probabilities.

        Raises:
            NetworkError: for a split that no rule covers.
        """

    def for_images(self, size: int) -> "NetworkConfig":
        """The architecture for images of `size` pixels; most families have one for all sizes."""
        return self

    def in_less_memory(self) -> "NetworkConfig":
        """The architecture computing parts again in the backward pass rather than keep them.

        Raises:
            NetworkError: for a family that cannot.
        """
        raise NetworkError(f"memory_efficient: {self} has no such mode; densenet… have")

    @abstractmethod
    def build(self, num_classes: int) -> nn.Module:
        """A network with fresh random weights: `[N, 3, H, W]` float to logits `[N, num_classes]`."""

    @abstractmethod
    def __str__(self) -> str:
        """The name, with what dividing changed."""
