"""The option of several verbs that chooses a checkpoint of a run."""

from enum import Enum


class Checkpoint(str, Enum):
    """The checkpoint of the last epoch, or of the epoch with the highest test accuracy."""

    LAST = "last"
    BEST = "best"
