"""A Python client for a Coserve server.

    from coserve_client import Client

    with Client("http://127.0.0.1:8000") as client:
        reply = client.classify("cat.jpg")
        print(reply.results[0].predictions[0].label)

- `Client` and its asynchronous twin `AsyncClient` classify images (`classify`), many images or whole folders
  (`classify_many`, `classify_folder`) and tensors (`infer`), and describe the server's models.
- `Image` names encoded bytes; `Source` is every form in which an image is accepted.
- `Reply`, `Outcome`, `Inference`, `Model`, `Metadata` and the types in them are what the methods return.
- `CoserveError` is the base of all errors; `coserve_client.errors` shows the whole tree.

The names in `__all__` are the public API.
"""

from coserve_client.async_client import AsyncClient
from coserve_client.batching import Outcome
from coserve_client.client import Client
from coserve_client.connecting import DEFAULT_TIMEOUT, DEFAULT_URL
from coserve_client.errors import (
    BadBodyError,
    BadImageError,
    BodyTooLargeError,
    CoserveError,
    DeadlineError,
    ForbiddenError,
    InputError,
    InternalError,
    InvalidParametersError,
    NoQuorumError,
    OverloadedError,
    ProblemError,
    ProtocolError,
    RejectedError,
    RequestTimeoutError,
    TooManyImagesError,
    TooManyPixelsError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
    UnsupportedTypeError,
    UploadTimeoutError,
)
from coserve_client.images import Image, Source
from coserve_client.replies import (
    EarlyStop,
    EarlyStopping,
    Inference,
    Member,
    Metadata,
    Model,
    Prediction,
    PredictionSets,
    Reply,
    Result,
    SetMethod,
    Tensor,
    Timings,
    Uncertainty,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "DEFAULT_URL",
    "AsyncClient",
    "BadBodyError",
    "BadImageError",
    "BodyTooLargeError",
    "Client",
    "CoserveError",
    "DeadlineError",
    "EarlyStop",
    "EarlyStopping",
    "ForbiddenError",
    "Image",
    "Inference",
    "InputError",
    "InternalError",
    "InvalidParametersError",
    "Member",
    "Metadata",
    "Model",
    "NoQuorumError",
    "Outcome",
    "OverloadedError",
    "Prediction",
    "PredictionSets",
    "ProblemError",
    "ProtocolError",
    "RejectedError",
    "Reply",
    "RequestTimeoutError",
    "Result",
    "SetMethod",
    "Source",
    "Tensor",
    "Timings",
    "TooManyImagesError",
    "TooManyPixelsError",
    "UnauthenticatedError",
    "UnavailableError",
    "Uncertainty",
    "UnknownModelError",
    "UnreachableError",
    "UnsupportedTypeError",
    "UploadTimeoutError",
]
