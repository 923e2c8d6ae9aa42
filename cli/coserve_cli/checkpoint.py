"""An option that several verbs share: which checkpoint of a run to use."""

from enum import Enum


class Checkpoint(str, Enum):
    """The checkpoint of the last epoch, or of the epoch with the highest accuracy on val/ or test/."""

    LAST = "last"
    BEST = "best"
