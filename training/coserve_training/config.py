"""The configuration of a training run, which the run folder keeps."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from coserve_training.errors import ConfigError
from coserve_training.options import (
    CO_TRAINING,
    DATA,
    OPTIMISATION,
    REGULARISATION,
    VIEWS,
    Count,
    Deviations,
    Help,
    Means,
    NotNegative,
    Positive,
    Probability,
    Share,
    check_options,
)

if TYPE_CHECKING:
    from coserve_training.networks.config import NetworkConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Policy = Literal["none", "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet", "randaugment"]

PAPER_EPOCHS = 300
"""Epochs of the paper's CIFAR schedule. Warm-ups of runs of other lengths are scaled from it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training run.

    Every field is an option of `coserve train` and a key in a recipe (docs/guides/training/train.md).
    """

    data: tuple[str, ...]
    network: str
    split: Annotated[Count, Help(DATA, "Number of members, S.")] = 1
    epochs: Annotated[Count, Help(DATA, "Passes over the training images.")] = PAPER_EPOCHS
    image_size: Annotated[
        int, Ge(8), Help(DATA, "Height and width of images in pixels, in training and serving.")
    ] = 32
    evaluation_scale: Annotated[
        float,
        Ge(1),
        Le(2),
        Help(DATA, "Shorter side in evaluation and serving, × image_size; its centre is cut out."),
    ] = 1.0
    interpolation: Annotated[
        Literal["bilinear", "bicubic"], Help(DATA, "How photographs are resized, in training and serving.")
    ] = "bilinear"
    mean: Annotated[
        Means | None,
        Help(DATA, "Channels' means, of pixels in [0, 1]; by default those of the training images."),
    ] = None
    std: Annotated[Deviations | None, Help(DATA, "Channels' standard deviations, likewise.")] = None
    start_size: Annotated[
        Annotated[int, Ge(8)] | None,
        Help(DATA, "Pixels in the first epoch; they grow to image_size."),
    ] = None
    growth_epochs: Annotated[
        NotNegative | None, Help(DATA, "Epochs over which images grow; half of the epochs by default.")
    ] = None
    skip_corrupt: Annotated[bool, Help(DATA, "Leave out images that cannot be read instead of stopping.")] = (
        False
    )
    sampling: Annotated[
        Literal["shuffled", "balanced"],
        Help(DATA, "shuffled: every image once per epoch; balanced: every class equally often."),
    ] = "shuffled"
    memory_efficient: Annotated[
        bool,
        Help(DATA, "Recompute activations: less memory, more time (DenseNet)."),
    ] = False
    initial: Annotated[str | None, Help(DATA, "Run folder whose weights to start from.")] = None
    seed: Annotated[int, Ge(0), Le(2**32 - 1), Help(DATA, "Seed of weights, image order and views.")] = 0

    crop: Annotated[
        Literal["padded", "resized", "none"],
        Help(VIEWS, "padded: shift by up to an eighth of the size; resized: resize a crop of crop_area."),
    ] = "padded"
    crop_area: Annotated[
        tuple[Share, Share], Help(VIEWS, "Smallest and largest share of an image that a resized crop covers.")
    ] = (0.08, 1.0)
    padding: Annotated[
        Literal["black", "reflect"], Help(VIEWS, "What fills the border that a padded crop leaves empty.")
    ] = "black"
    flip: Annotated[bool, Help(VIEWS, "Flip half of the images horizontally.")] = True
    policy: Annotated[Policy, Help(VIEWS, "AutoAugment with a data set's policy, or RandAugment.")] = "none"
    policy_operations: Annotated[Count, Le(15), Help(VIEWS, "RandAugment's operations per image.")] = 2
    policy_magnitude: Annotated[int, Ge(0), Le(10), Help(VIEWS, "RandAugment's magnitude, out of 10.")] = 9
    policy_magnitude_std: Annotated[
        NotNegative, Help(VIEWS, "Standard deviation of RandAugment's magnitude.")
    ] = 0.5
    erasing: Annotated[Probability, Help(VIEWS, "Probability of erasing a random rectangle.")] = 0.0
    erasing_area: Annotated[
        tuple[Share, Share], Help(VIEWS, "Smallest and largest share of an image that random erasing covers.")
    ] = (0.02, 0.33)
    erasing_ratio: Annotated[
        tuple[Positive, Positive],
        Help(VIEWS, "Smallest and largest height / width of what random erasing covers."),
    ] = (0.3, 3.3)
    cutout: Annotated[int, Ge(0), Help(VIEWS, "Side in pixels of a square erased from each image.")] = 0
    mixup: Annotated[NotNegative, Help(VIEWS, "Mixup's alpha; all members share the pairs.")] = 0.0

    optimizer: Annotated[Literal["sgd", "rmsprop"], Help(OPTIMISATION, "sgd uses Nesterov momentum.")] = "sgd"
    batch_size: Annotated[int, Ge(2), Help(OPTIMISATION, "Images per step, over all devices.")] = 128
    accumulate: Annotated[Count, Help(OPTIMISATION, "Steps whose gradients make one update.")] = 1
    learning_rate: Annotated[NotNegative, Help(OPTIMISATION, "Learning rate after warm-up.")] = 0.1
    final_learning_rate: Annotated[
        NotNegative, Help(OPTIMISATION, "Learning rate at the end of a cosine or linear schedule.")
    ] = 1e-4
    momentum: Annotated[Probability, Help(OPTIMISATION, "Momentum of the optimizer.")] = 0.9
    warmup_epochs: Annotated[
        NotNegative | None,
        Help(OPTIMISATION, "Warm-up of the learning rate; 20/300 of the epochs by default."),
    ] = None
    bias_learning_rate: Annotated[
        NotNegative, Help(OPTIMISATION, "Factor of the learning rate of parameters that do not decay.")
    ] = 1.0
    schedule: Annotated[
        Literal["cosine", "linear", "exponential", "step"],
        Help(OPTIMISATION, "Learning-rate schedule after warm-up."),
    ] = "cosine"
    decay_rate: Annotated[
        float,
        Gt(0),
        Le(1),
        Help(OPTIMISATION, "Factor per decay_epochs in the exponential and step schedules."),
    ] = 0.1
    decay_epochs: Annotated[
        Positive | None, Help(OPTIMISATION, "Epochs per decay_rate; a third of the epochs by default.")
    ] = None
    ema: Annotated[
        Probability, Help(OPTIMISATION, "Decay of a moving average that replaces the weights; 0: none.")
    ] = 0.0
    sync_batch_norm: Annotated[bool, Help(OPTIMISATION, "Share batch-norm statistics among devices.")] = False
    precision: Annotated[Precision, Help(OPTIMISATION, "auto: bf16 where the hardware has it.")] = "auto"

    weight_decay: Annotated[
        NotNegative,
        Help(REGULARISATION, "Weight decay of the undivided network; biases and norm shifts do not decay."),
    ] = 5e-4
    decay_norms: Annotated[bool, Help(REGULARISATION, "Decay the scales of norms too.")] = True
    divide_weight_decay: Annotated[
        bool, Help(REGULARISATION, "Multiply weight_decay by exp(1/S − 1) (the paper's Eq. 6).")
    ] = False
    label_smoothing: Annotated[Probability, Help(REGULARISATION, "Probability spread over all classes.")] = (
        0.0
    )
    class_weights: Annotated[
        Literal["none", "balanced"],
        Help(REGULARISATION, "balanced: weight each image's cross-entropy by the rarity of its class."),
    ] = "none"
    dropout: Annotated[
        Probability | None,
        Help(REGULARISATION, "Dropout before the classifier, ÷ √S; by default the network's own."),
    ] = None
    drop_path: Annotated[
        Probability | None,
        Help(
            REGULARISATION,
            "Drop rate of the last residual branch (PyramidNet: ShakeDrop), ÷ √S; "
            "by default the network's own.",
        ),
    ] = None

    co_training_term: Annotated[
        Literal["js", "kl"], Help(CO_TRAINING, "Jensen-Shannon divergence, or KL between all pairs.")
    ] = "js"
    co_training_weight: Annotated[
        NotNegative, Help(CO_TRAINING, "Weight of that term; 0 trains members independently.")
    ] = 0.5
    co_training_warmup_epochs: Annotated[
        NotNegative | None, Help(CO_TRAINING, "Warm-up of that weight; 40/300 of the epochs by default.")
    ] = None
    own_views: Annotated[
        bool, Help(CO_TRAINING, "Give each member a view of its own of each image, not one for all.")
    ] = True

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: for a value out of range; the message names it.
            NetworkError: for a network or a split that no rule covers.
        """
        for name, value in validate(asdict(self)).items():
            object.__setattr__(self, name, value)
        self.member_network()
        if not self.data:
            raise ConfigError("data: at least one folder, zip or CIFAR file is needed")
        if self.start_size is not None and self.start_size > self.image_size:
            raise ConfigError(
                f"start_size must be at most image_size ({self.image_size}), not {self.start_size}"
            )
        for name in ("crop_area", "erasing_area", "erasing_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(f"{name} must have the smaller number first, not {low:g} {high:g}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std must be given together")
        if self.sampling == self.class_weights == "balanced":
            raise ConfigError(
                "sampling balanced and class_weights balanced would favour rare classes twice; choose one"
            )
        if self.growth_epochs is not None and self.growth_epochs > self.epochs - 0.5:
            raise ConfigError(
                f"growth_epochs must be at most {self.epochs - 0.5:g}, so that the last epoch has images of "
                f"full size, not {self.growth_epochs:g}"
            )
        if self.padding != "black" and self.crop != "padded":
            raise ConfigError(f"padding {self.padding} needs crop padded, not {self.crop}")
        if self.cutout > self.image_size:
            raise ConfigError(f"cutout must be at most image_size ({self.image_size}), not {self.cutout}")

    def member_network(self) -> "NetworkConfig":
        """Return the architecture of one member."""
        # Imported late: `coserve --help` does not need torch.
        from coserve_training.networks import member_network

        return member_network(
            self.network,
            self.split,
            image_size=self.image_size,
            dropout=self.dropout,
            drop_path=self.drop_path,
            memory_efficient=self.memory_efficient,
        )

    @property
    def resize_size(self) -> int:
        """Length in pixels that the shorter side is resized to in evaluation and serving."""
        return int(self.image_size * self.evaluation_scale)

    @property
    def resolved_warmup_epochs(self) -> float:
        """Warm-up of the learning rate, in epochs."""
        return self.epochs * 20 / PAPER_EPOCHS if self.warmup_epochs is None else self.warmup_epochs

    @property
    def resolved_co_training_warmup_epochs(self) -> float:
        """Warm-up of the co-training term's weight, in epochs."""
        if self.co_training_warmup_epochs is None:
            return self.epochs * 40 / PAPER_EPOCHS
        return self.co_training_warmup_epochs

    @property
    def resolved_growth_epochs(self) -> float:
        """Epochs over which images grow from `start_size`."""
        return self.epochs / 2 if self.growth_epochs is None else self.growth_epochs

    @property
    def member_weight_decay(self) -> float:
        """Weight decay of each member, by the paper's Eq. 6 if `divide_weight_decay`."""
        return self.weight_decay * (math.exp(1 / self.split - 1) if self.divide_weight_decay else 1)

    def drawer_of(self, member: int) -> int:
        """Return the member whose random numbers draw this member's views: itself, or the first for all."""
        return member if self.own_views else 0

    def size_at(self, epoch: int) -> int:
        """Return the training resolution in pixels at `epoch`, counted from 0.

        While it grows ("progressive learning", arXiv 2104.00298), it is a multiple of 4, so that every stage
        can halve it.
        """
        growth = self.resolved_growth_epochs
        if self.start_size is None or epoch >= growth - 0.5:
            return self.image_size
        grown = (self.image_size - self.start_size) * epoch / growth
        return max(self.start_size, int(self.start_size + grown) // 4 * 4)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """Make a configuration from options: read back from JSON, or put together from a recipe.

        Raises:
            ConfigError: for an unknown key, or a value out of range.
        """
        validate(values)
        return cls(**values)


def validate(values: dict[str, Any]) -> dict[str, Any]:
    """Check some options of a run, and convert each to its field's type.

    Raises:
        ConfigError: for an unknown key, or a value out of range; the message names it.
    """
    return check_options(TrainConfig, values)
