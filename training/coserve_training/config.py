"""What one training run is made of; resolved once, kept in the run folder."""

import functools
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from coserve_training.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from coserve_training.networks.config import NetworkConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Policy = Literal["none", "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet", "randaugment"]

PAPER_EPOCHS = 300
"""The length of the paper's CIFAR schedule, from which warm-ups are scaled to other lengths."""


class Help(NamedTuple):
    """What a user reads about an option, and under which heading."""

    group: str
    text: str


Probability = Annotated[float, Ge(0), Lt(1)]
NotNegative = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Count = Annotated[int, Ge(1)]

DATA, VIEWS, OPTIMISATION = "Data and network", "Augmentation", "Optimisation"
REGULARISATION, CO_TRAINING = "Regularisation", "Co-training"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Every field is an option of `coserve train` and a key of a recipe (docs/train.md).
    """

    data: tuple[str, ...]
    network: str
    split: Annotated[Count, Help(DATA, "Number of members, S.")] = 1
    epochs: Annotated[Count, Help(DATA, "Passes over the training images.")] = PAPER_EPOCHS
    image_size: Annotated[
        int, Ge(8), Help(DATA, "Height and width that images are served at, in pixels.")
    ] = 32
    start_size: Annotated[
        Annotated[int, Ge(8)] | None,
        Help(
            DATA, "Resolution of the first epoch; it grows to the full one over the first half of the epochs."
        ),
    ] = None
    skip_corrupt: Annotated[bool, Help(DATA, "Leave out images that cannot be read, rather than stop.")] = (
        False
    )
    memory_efficient: Annotated[
        bool,
        Help(DATA, "Compute parts again rather than keep them, in less memory and more time (DenseNet)."),
    ] = False
    initial: Annotated[str | None, Help(DATA, "Run folder to start from instead of random weights.")] = None
    seed: Annotated[int, Ge(0), Le(2**32 - 1), Help(DATA, "Of weights, order and views.")] = 0

    crop: Annotated[
        Literal["padded", "resized", "none"],
        Help(VIEWS, "padded: shift by up to an eighth of the size; resized: cut out 8 to 100 % of the area."),
    ] = "padded"
    flip: Annotated[bool, Help(VIEWS, "Mirror half of the images.")] = True
    policy: Annotated[Policy, Help(VIEWS, "AutoAugment with the policy of a data set, or RandAugment.")] = (
        "none"
    )
    policy_operations: Annotated[Count, Le(15), Help(VIEWS, "Of RandAugment, per image.")] = 2
    policy_magnitude: Annotated[int, Gt(0), Lt(30), Help(VIEWS, "Of RandAugment, of 30.")] = 9
    erasing: Annotated[Probability, Help(VIEWS, "Probability of erasing a random rectangle.")] = 0.0
    cutout: Annotated[int, Ge(0), Help(VIEWS, "Side in pixels of a square cut from each image.")] = 0
    mixup: Annotated[
        NotNegative, Help(VIEWS, "Alpha of mixing pairs of images; one pairing for all members.")
    ] = 0.0

    optimizer: Annotated[Literal["sgd", "rmsprop"], Help(OPTIMISATION, "sgd has Nesterov momentum.")] = "sgd"
    batch_size: Annotated[int, Ge(2), Help(OPTIMISATION, "Images per step, over all devices.")] = 128
    accumulate: Annotated[Count, Help(OPTIMISATION, "Steps whose gradients are summed up to one update.")] = 1
    learning_rate: Annotated[NotNegative, Help(OPTIMISATION, "After warm-up.")] = 0.1
    final_learning_rate: Annotated[NotNegative, Help(OPTIMISATION, "At the cosine's end.")] = 1e-4
    momentum: Annotated[Probability, Help(OPTIMISATION, "Of the optimizer.")] = 0.9
    warmup_epochs: Annotated[
        NotNegative | None, Help(OPTIMISATION, "Of the learning rate; 20/300 of the epochs unless given.")
    ] = None
    schedule: Annotated[
        Literal["cosine", "exponential", "step"], Help(OPTIMISATION, "Of the learning rate after warm-up.")
    ] = "cosine"
    decay_rate: Annotated[
        float,
        Gt(0),
        Le(1),
        Help(OPTIMISATION, "Factor per decay_epochs of the exponential and step schedules."),
    ] = 0.1
    decay_epochs: Annotated[
        Positive | None, Help(OPTIMISATION, "See decay_rate; a third of the epochs unless given.")
    ] = None
    ema: Annotated[
        Probability, Help(OPTIMISATION, "Decay of an average of the weights, kept instead; 0: none.")
    ] = 0.0
    sync_batch_norm: Annotated[bool, Help(OPTIMISATION, "Statistics over the batches of all devices.")] = (
        False
    )
    precision: Annotated[Precision, Help(OPTIMISATION, "auto: bf16 where the hardware computes in it.")] = (
        "auto"
    )

    weight_decay: Annotated[NotNegative, Help(REGULARISATION, "Of one undivided network.")] = 5e-4
    divide_weight_decay: Annotated[
        bool, Help(REGULARISATION, "Multiply it by exp(1/S − 1) (the paper's Eq. 6).")
    ] = False
    label_smoothing: Annotated[Probability, Help(REGULARISATION, "Spread over all classes.")] = 0.0
    dropout: Annotated[
        Probability | None,
        Help(REGULARISATION, "Before the classifier, ÷ √S; the network's own unless given."),
    ] = None
    drop_path: Annotated[
        Probability | None,
        Help(REGULARISATION, "Of the last residual branch, ÷ √S (PyramidNet: ShakeDrop); likewise."),
    ] = None

    co_training_term: Annotated[
        Literal["js", "kl"], Help(CO_TRAINING, "Jensen-Shannon, or each member's KL to every other.")
    ] = "js"
    co_training_weight: Annotated[NotNegative, Help(CO_TRAINING, "Of that term; 0 trains members apart.")] = (
        0.5
    )
    co_training_warmup_epochs: Annotated[
        NotNegative | None, Help(CO_TRAINING, "Of that weight; 40/300 of the epochs unless given.")
    ] = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: for a value out of range, naming it.
            NetworkError: for a network or a split that no rule covers.
        """
        for name, value in checked(asdict(self)).items():
            object.__setattr__(self, name, value)
        self.member_network()
        if not self.data:
            raise ConfigError("data: at least one folder, zip or CIFAR file is needed")
        if self.start_size is not None and self.start_size > self.image_size:
            raise ConfigError(
                f"start_size must be at most image_size ({self.image_size}), not {self.start_size}"
            )
        if self.cutout > self.image_size:
            raise ConfigError(f"cutout must be at most image_size ({self.image_size}), not {self.cutout}")

    def member_network(self) -> "NetworkConfig":
        """The configuration of one member."""
        from coserve_training.networks import (
            member_network,
        )  # late: brings torch, which `--help` does not need

        return member_network(
            self.network,
            self.split,
            image_size=self.image_size,
            dropout=self.dropout,
            drop_path=self.drop_path,
            memory_efficient=self.memory_efficient,
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

    @property
    def member_weight_decay(self) -> float:
        """Weight decay of each member (paper, Eq. 6, where asked for)."""
        return self.weight_decay * (math.exp(1 / self.split - 1) if self.divide_weight_decay else 1)

    def size_at(self, epoch: int) -> int:
        """Training resolution in pixels at `epoch` (from 0), a multiple of 4 that every stage can halve.

        Growing it is "progressive learning" (arXiv 2104.00298).
        """
        if self.start_size is None or 2 * epoch >= self.epochs - 1:
            return self.image_size
        grown = (self.image_size - self.start_size) * 2 * epoch / self.epochs
        return max(self.start_size, int(self.start_size + grown) // 4 * 4)

    @property
    def recipe_hash(self) -> str:
        """12 hex digits over every value but what was divided, where things lie, and what changes nothing."""
        elsewhere = {"data", "initial", "network", "split", "memory_efficient"}
        recipe = {k: v for k, v in asdict(self).items() if k not in elsewhere}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The configuration that `asdict` turned into JSON, or that a recipe and options make up.

        Raises:
            ConfigError: for a key that this version does not know, or a value out of range.
        """
        checked(values)
        return cls(**values)


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """Some values of a configuration, each in its own type.

    Raises:
        ConfigError: naming a key that this version does not know, or a value out of range.
    """
    from pydantic import ValidationError

    known = [field.name for field in fields(TrainConfig)]
    for name in values:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            raise ConfigError(
                f"unknown configuration {name}" + "".join(f"; the nearest is {n}" for n in nearest)
            )
    try:
        return _schema()(**values).model_dump(exclude_unset=True)
    except ValidationError as error:
        problem = error.errors()[0]
        # What follows is how the parser failed.
        allowed = re.sub(", (unable|got) .*", "", problem["msg"]).replace("Input should be", "must be")
        for long, short in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
            allowed = allowed.replace(long, short)
        raise ConfigError(f"{problem['loc'][0]} {allowed}, not {problem['input']}") from error


@functools.cache
def _schema() -> "type[BaseModel]":
    from pydantic import create_model  # late, like torch: reading options and their help must be quick

    hints = get_type_hints(TrainConfig, include_extras=True)
    definitions: Any = {name: (hint, None) for name, hint in hints.items()}
    schema: type[BaseModel] = create_model("TrainConfig", **definitions)
    return schema
