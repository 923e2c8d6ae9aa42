"""Errors of exporting that a user can act on.

ExportError
├── DescriptionError   a name, labels, weights or preprocessing that no repository can hold
├── NetworkError       a network or an ONNX file that cannot be served
│   ├── ParityError    an ONNX network whose logits differ from those of the network it came from
│   └── AccuracyError  an int8 ensemble that is right less often than the one it came from
└── RepositoryError    a repository that cannot be written, or already has the ensemble
"""


class ExportError(Exception):
    """Base of all errors raised on purpose by this package."""


class DescriptionError(ExportError):
    """A description of an ensemble that no repository can hold."""


class NetworkError(ExportError):
    """A network that cannot be exported or served."""


class ParityError(NetworkError):
    """Logits too far from the reference.

    Attributes:
        subject: whose logits, e.g. `"member 0"` or `"the ensemble's mean"`.
        difference: the largest absolute difference; NaN where logits are not finite.
        limit: the largest difference allowed.
    """

    def __init__(self, subject: str, difference: float, limit: float, reason: str) -> None:
        super().__init__(f"{subject}: {reason}; nothing was written")
        self.subject, self.difference, self.limit = subject, difference, limit


class AccuracyError(NetworkError):
    """Quantising cost more top-1 accuracy than is allowed."""


class RepositoryError(ExportError):
    """A model repository that cannot be written."""


def on_one_line(error: BaseException) -> str:
    """Another library's error as part of a one-line message."""
    return " ".join(str(error).split())
