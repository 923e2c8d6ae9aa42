"""Errors of dividing and training that a user can act on.

TrainingError
├── NetworkError     unknown network, impossible depth or split
├── DataError        missing, unreadable or inconsistent images
├── ConfigError      a value of the recipe that is out of range
└── RunError         a run folder that is missing, in use or of another configuration
"""


class TrainingError(Exception):
    """Base of all errors raised on purpose by this package."""


class NetworkError(TrainingError):
    """A network's name, depth or split that no rule covers."""


class DataError(TrainingError):
    """Images or labels that cannot be used as they are."""


class ConfigError(TrainingError):
    """A value of the training configuration that is out of range."""


class RunError(TrainingError):
    """A run folder that cannot be created, resumed or loaded."""
