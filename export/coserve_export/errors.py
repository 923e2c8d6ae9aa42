"""Export errors that a user can act on.

ExportError
├── DescriptionError   invalid options: name, labels, weights, preprocessing, deployment, images
├── NetworkError       a network or an ONNX file that cannot be exported or served
│   ├── ParityError    an ONNX network whose logits differ from those of the network it was made from
│   └── AccuracyError  an int8 ensemble that is less accurate than its fp32 original by more than allowed
└── RepositoryError    a repository that cannot be written, or that already has the ensemble
"""


class ExportError(Exception):
    """Base class of the errors that this package raises on purpose."""


class DescriptionError(ExportError):
    """An invalid option, or data for it that cannot be used."""


class NetworkError(ExportError):
    """A network that cannot be exported or served."""


class ParityError(NetworkError):
    """Logits that differ too much from the reference.

    Attributes:
        subject: whose logits differ, such as `"member 0"` or `"the ensemble's mean"`.
        difference: the largest absolute difference; NaN if any logit is not finite.
        limit: the largest difference allowed.
    """

    def __init__(self, subject: str, difference: float, limit: float, reason: str) -> None:
        super().__init__(f"{subject}: {reason}; nothing was written")
        self.subject = subject
        self.difference = difference
        self.limit = limit


class AccuracyError(NetworkError):
    """Quantisation that costs more top-1 accuracy than allowed."""


class RepositoryError(ExportError):
    """A model repository that cannot be written, or that already has the ensemble."""


def on_one_line(error: BaseException) -> str:
    """Return another library's error message without line breaks."""
    return " ".join(str(error).split())
