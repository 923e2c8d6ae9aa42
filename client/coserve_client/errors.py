"""What can go wrong between a client and its server.

CoserveError
  x InputError            what the caller gave cannot be sent
  x UnreachableError      no connection, or it broke
  x RequestTimeoutError   the server took too long
  x ProtocolError         the answer is not a Coserve server's
  x ProblemError          the server says what is wrong (RFC 9457)
    + RejectedError       400, 413, 415: it does not take these images
    + UnknownModelError   404
    + UnavailableError    503: overloaded, or too few members are running
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx


class CoserveError(Exception):
    """Base of every error this package raises."""


class InputError(CoserveError):
    """What the caller gave cannot be sent: an unreadable file, no image, an unusable address."""


class UnreachableError(CoserveError):
    """No connection to the server could be made, or it broke before the answer was complete."""


class RequestTimeoutError(CoserveError):
    """The server did not answer within the client's timeout."""


class ProtocolError(CoserveError):
    """The answer is not one a Coserve server gives."""


class ProblemError(CoserveError):
    """The server's own account of what went wrong, an RFC 9457 problem document.

    Attributes:
        type: URI reference that identifies the kind of problem; stable across releases.
        title: the kind of problem in words.
        status: HTTP status code of the answer.
        detail: what happened this time, or None.
        extra: the document's other members.
    """

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        extra = dict(document)
        self.type = str(extra.pop("type", "about:blank"))
        self.title = str(extra.pop("title", f"status {status}"))
        detail = extra.pop("detail", None)
        self.detail = None if detail is None else str(detail)
        extra.pop("status", None)
        self.status = status
        self.extra = extra
        super().__init__(f"{self.detail or self.title} (the server answered {status})")


class RejectedError(ProblemError):
    """The server does not take these images: not decodable, too large, or of an unsupported type."""


class UnknownModelError(ProblemError):
    """The server has no ensemble of that name."""


class UnavailableError(ProblemError):
    """The server is overloaded, or too few members of the ensemble are running."""


PROBLEMS: Mapping[int, type[ProblemError]] = {
    400: RejectedError,
    404: UnknownModelError,
    413: RejectedError,
    415: RejectedError,
    503: UnavailableError,
}


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise httpx's errors as this package's, most specific first, with the cause kept.

    Raises:
        UnreachableError: no connection, or it broke.
        RequestTimeoutError: a timeout after connecting.
        ProtocolError: the answer could not be decoded.
    """
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UnreachableError(
            f"no server answers at {url} ({str(error) or 'timed out'}); "
            "start one with: coserve serve --repository model_repository"
        ) from error
    except httpx.TimeoutException as error:
        raise RequestTimeoutError(f"{url} did not answer in time ({type(error).__name__})") from error
    except (httpx.ReadError, httpx.WriteError) as error:
        # A server that refuses a body before reading all of it resets the connection; under asyncio the
        # reset discards its answer.
        raise UnreachableError(
            f"{url} broke off the connection ({str(error) or type(error).__name__}); "
            "perhaps because the request is larger than it allows"
        ) from error
    except httpx.TransportError as error:
        raise UnreachableError(f"the connection to {url} failed: {error}") from error
    except httpx.RequestError as error:
        raise ProtocolError(f"the answer of {url} cannot be read: {error}") from error
