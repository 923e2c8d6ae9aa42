"""Errors in dividing and training that a user can act on.

TrainingError
├── NetworkError     an unknown network, or an impossible depth or split
├── DataError        missing, unreadable or inconsistent images
│   └── CorruptImagesError   images that cannot be decoded
├── ConfigError      a configuration value out of range
└── RunError         a run folder that is missing, damaged, in use or of another configuration
"""


class TrainingError(Exception):
    """Base class of all errors that this package raises on purpose."""


class NetworkError(TrainingError):
    """A network name, depth or split that no rule covers."""


class DataError(TrainingError):
    """Images or labels that cannot be used."""


class CorruptImagesError(DataError):
    """Images that cannot be decoded, which `skip_corrupt` would leave out."""


class ConfigError(TrainingError):
    """A training configuration with an unknown option or a value out of range."""


class RunError(TrainingError):
    """A run folder that cannot be created, resumed or loaded."""
