"""What a Coserve server answers, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """One class an image may show: `probability` in 0…1, `logit` as combined over the members."""

    label: str
    class_id: int
    probability: float
    logit: float


@dataclass(frozen=True)
class Uncertainty:
    """How unsure the ensemble is of an image, and how far its members differ, both in nats.

    `entropy` is that of the probabilities, `disagreement` the mutual information between the answer and the
    choice of a member.
    """

    entropy: float
    disagreement: float


@dataclass(frozen=True)
class Result:
    """What the server says of one image, the most probable class first.

    `member_predictions` holds the same per member name where the request asked for it.
    """

    filename: str
    predictions: tuple[Prediction, ...]
    uncertainty: Uncertainty
    member_predictions: Mapping[str, tuple[Prediction, ...]] | None


@dataclass(frozen=True)
class Member:
    """One member's part in a reply; times in milliseconds since the first member started."""

    name: str
    used: bool
    device: str | None
    start_ms: float | None
    end_ms: float | None
    error: str | None


@dataclass(frozen=True)
class Timings:
    """Where the server's time went, in milliseconds; `decode` and `preprocess` are sums over the images."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    combine: float
    total: float


@dataclass(frozen=True)
class Reply:
    """The answer to one classification request, one result per image in the order sent.

    `degraded` says that fewer than all members were combined; `measured_top1` is the share of right first
    answers that those combined reached on a test set, where the server knows it. `overlap` is the sum of the
    members' durations divided by the wall time of all: S when S equal members ran in parallel, 1 when one
    after another.
    """

    model: str
    version: str
    degraded: bool
    measured_top1: float | None
    overlap: float
    members: tuple[Member, ...]
    timings_ms: Timings
    results: tuple[Result, ...]

    @property
    def missing(self) -> tuple[Member, ...]:
        """The members whose logits are not in this reply."""
        return tuple(member for member in self.members if not member.used)


@dataclass(frozen=True)
class Model:
    """An ensemble that is served.

    `ready` says whether `quorum` members, as many as must answer a request, can. `weights` are the members'
    shares in the mean, `labels` are by class index; `provenance` is what its repository says of it.
    """

    name: str
    version: str
    ready: bool
    quorum: int
    members: tuple[str, ...]
    weights: tuple[float, ...]
    max_batch_size: int
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """A model's input or output; -1 in its shape is the number of images."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Metadata:
    """What the Open Inference Protocol says of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Inference:
    """The answer to tensors: logits, FP32 `[N, C]`, as combined over `members`.

    `missing` says of every member that is not among them why, `overlap` is as in `Reply`.
    """

    model: str
    version: str
    logits: "NDArray[np.float32]"
    degraded: bool
    members: tuple[str, ...]
    missing: str | None
    overlap: float
