"""Which of a run's checkpoints, as an option of several verbs."""

from enum import Enum


class Checkpoint(str, Enum):
    """The last epoch's, or the one of highest test accuracy."""

    LAST = "last"
    BEST = "best"
