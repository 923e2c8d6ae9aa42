"""Maps request errors to gRPC statuses; `api.problems` maps the same errors to HTTP statuses."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grpc import StatusCode

from coserve_server import errors
from coserve_server.api.problems import KINDS, MAX_DETAIL, Kind

Metadata = Sequence[tuple[str, str]]

CODES: Mapping[type[errors.RequestError], StatusCode] = {
    errors.BadImageError: StatusCode.INVALID_ARGUMENT,
    errors.BadBodyError: StatusCode.INVALID_ARGUMENT,
    errors.UnauthenticatedError: StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: StatusCode.PERMISSION_DENIED,
    errors.UnknownModelError: StatusCode.NOT_FOUND,
    errors.UploadTimeoutError: StatusCode.DEADLINE_EXCEEDED,
    # gRPC itself uses this status for a message above its own limit.
    errors.BodyTooLargeError: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyImagesError: StatusCode.INVALID_ARGUMENT,
    errors.TooManyPixelsError: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedTypeError: StatusCode.INVALID_ARGUMENT,
    errors.InvalidParametersError: StatusCode.INVALID_ARGUMENT,
    errors.NotEnabledError: StatusCode.UNIMPLEMENTED,
    errors.OverloadedError: StatusCode.UNAVAILABLE,
    errors.NoQuorumError: StatusCode.UNAVAILABLE,
    errors.DeadlineError: StatusCode.DEADLINE_EXCEEDED,
}

OWN_FAULTS = frozenset({StatusCode.INTERNAL, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED})
"""Statuses that are the server's fault."""

MAX_DETAILS_BYTES = 4000
"""Limit on a status text as gRPC sends it, percent-encoded: clients accept 8 KiB of trailers."""


class Fault(NamedTuple):
    """The status, kind of problem, text and trailers with which a failed call ends."""

    code: StatusCode
    kind: Kind
    text: str
    trailers: Metadata = ()


def describe_error(error: errors.RequestError) -> Fault:
    """Return the fault for a request error."""
    trailers: Metadata = ()
    if isinstance(error, errors.OverloadedError):
        seconds = error.retry_after_s
        trailers = (("retry-after", str(seconds)), ("grpc-retry-pushback-ms", str(seconds * 1000)))
    return Fault(CODES[type(error)], KINDS[type(error)], str(error), trailers)


INTERNAL = Fault(StatusCode.INTERNAL, Kind(500, "internal"), "internal error; see the server's log")
STOPPING = Fault(StatusCode.UNAVAILABLE, Kind(503, "stopping"), "the server is stopping")


def clip(text: str) -> str:
    """Shorten a status text to what clients accept."""
    size = 0
    if len(text) > MAX_DETAIL:
        text = f"{text[:MAX_DETAIL]}…"
    for index, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(_encode(character))
        if size > MAX_DETAILS_BYTES:
            return f"{_encode(text[:index]).decode()}…"
    return _encode(text).decode()


def _encode(text: str) -> bytes:
    """Encode a text, which may quote a file name that is not UTF-8."""
    return text.encode(errors="replace")
