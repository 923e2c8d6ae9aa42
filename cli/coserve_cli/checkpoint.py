"""The option of several verbs that chooses a checkpoint of a run."""

from enum import Enum


class Checkpoint(str, Enum):
    """The checkpoint of the last epoch, or of the epoch with the highest accuracy on val/ or test/."""

    LAST = "last"
    BEST = "best"
