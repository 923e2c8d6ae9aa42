"""Python client of a Coserve server, synchronous and asynchronous."""

from coserve_client.client import DEFAULT_TIMEOUT, DEFAULT_URL, AsyncClient, Client
from coserve_client.errors import (
    CoserveError,
    InputError,
    ProblemError,
    ProtocolError,
    RejectedError,
    RequestTimeoutError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
)
from coserve_client.images import Image, Source
from coserve_client.replies import Member, Model, Prediction, Reply, Result, Timings, Uncertainty

__all__ = [
    "DEFAULT_TIMEOUT",
    "DEFAULT_URL",
    "AsyncClient",
    "Client",
    "CoserveError",
    "Image",
    "InputError",
    "Member",
    "Model",
    "Prediction",
    "ProblemError",
    "ProtocolError",
    "RejectedError",
    "Reply",
    "RequestTimeoutError",
    "Result",
    "Source",
    "Timings",
    "UnavailableError",
    "Uncertainty",
    "UnknownModelError",
    "UnreachableError",
]
